// How far rows are from the nearest of several classes.
#pragma once

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

}  // namespace pydfm
