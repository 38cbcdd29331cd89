// How far rows are from the nearest of several classes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/matrix.hpp"
#include "stats/bounds.hpp"
#include "stats/scoring.hpp"

namespace pydfm {

struct NearestClasses {
  Matrix<float> scores;  // (n_types, n)  the lowest over the classes
  Matrix<int> classes;   // (n_types, n)  whose it is, the first of equals; -1 for a NaN row
};

/// Scores of `rows` (n, d) under the nearest of several classes, each type by itself: what `score`
/// gives for every class, and the least of it. With `bounds` of the same classes, a class that
/// cannot be a row's nearest is passed over; the result is the same to the bit, whether a class was
/// passed over or not. Extra memory per thread: two numbers per class and row of a block.
NearestClasses score_nearest(const RowsView& rows, const std::vector<const Scorer*>& scorers,
                             const Bounds* bounds, const std::vector<ScoreType>& types,
                             int n_threads);

/// Held-out scores of some classes, of one type, that the scores of rows are compared with.
struct HeldOutScores {
  const float* scores;         // class after class, ascending
  const double* weights;       // n + 1 of each class: the weight of all scores from each on, and 0
  const std::int64_t* starts;  // (n_classes + 1,)  where the scores of each class begin
  VectorView<double> n_units;  // (n_classes,)  0 where the class has no held-out scores
  VectorView<double> thresholds;  // (n_classes,)  NaN likewise

  /// (1 + the weight of the held-out scores that are at least as high) / (n_units + 1).
  double p_value(Index c, float score) const;
};

struct JudgedRows {
  NearestClasses nearest;   // of one type
  Vector<double> p_values;  // (n,)  the largest over the classes; NaN where none has any
  Vector<double> margins;   // (n,)  threshold less score, likewise
};

/// The lowest score of each row, its largest p-value and its largest margin over the classes, from
/// one pass. The result is the same to the bit as from the scores under every class.
JudgedRows judge(const RowsView& rows, const std::vector<const Scorer*>& scorers,
                 const Bounds* bounds, ScoreType type, const HeldOutScores& held_out,
                 int n_threads);

}  // namespace pydfm
