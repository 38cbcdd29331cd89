// What the bindings call: plain views in, arrays out. This header has no Eigen type, so that the
// bindings are compiled once and linked with each build of the core.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/arrays.hpp"

namespace pydfm {

class Scorer;
class Bounds;

namespace core {

struct Matrix {
  const double* data;
  Index rows, cols;
};

struct Vector {
  const double* data;
  Index size;
};

struct Integers {
  const std::int64_t* data;
  Index size;
};

struct MomentsView {
  Index count;
  Vector mean;
  Matrix scatter;
};

struct Moments {
  Index count;
  Array<double> mean, scatter;
};

struct Gram {
  Array<double> mean, gram;
};

struct Eigenpairs {
  Array<double> values, vectors;
};

struct Nearest {
  Array<float> scores;
  Array<int> classes;
};

struct HeldOutScores {
  const float* scores;
  const double* weights;
  const std::int64_t* starts;
  Vector n_units, thresholds;
};

struct Judged {
  Nearest nearest;
  Array<double> p_values, margins;
};

struct TrainingRows {
  Matrix coordinates;
  Vector eigenvalues, rho;
  double resolution;
};

struct RemainingModel {
  Index n_components;
  double degrees_of_freedom;
  Index n_variances, n_features;
};

struct RowGroups {
  Matrix rows;
  Integers starts;
};

struct TrainingGroups {
  RowGroups groups;
  Vector eigenvalues, class_sizes, degrees_of_freedom;
  double resolution;
};

struct GroupModels {
  Index n_components;
  Integers n_variances;
  Index n_features;
  bool shrinkage;
  double floor;
};

using ScoreTypes = std::vector<std::string>;
using Scorers = std::vector<const Scorer*>;

const char* instruction_set();
std::string eigen_version();

Moments moments(const RowsView& rows, int n_threads);
Moments merge_moments(const MomentsView& a, const MomentsView& b);
Moments subtract_moments(const MomentsView& a, const MomentsView& b);
Gram gram(const RowsView& rows, int n_threads);
Array<double> components_from_gram(const RowsView& rows, const Vector& mean, const Vector& values,
                                   const Matrix& vectors, int n_threads);
Array<double> coordinates(const RowsView& rows, const Vector& mean, const Matrix& components,
                          int n_threads);
Array<double> residuals(const RowsView& rows, const Vector& mean, const Matrix& components,
                        int n_threads);
/// a b, or a b' where b is `transposed`.
Array<double> product(const Matrix& a, const Matrix& b, bool transposed, int n_threads);
Eigenpairs eigh(const Matrix& a, Index count, double share, int n_threads);

/// Reads the memory of its arguments, which must outlive it.
std::shared_ptr<const Scorer> make_scorer(const Vector& mean, const Matrix& components,
                                          const Vector& variances, double noise_variance);
Index n_features(const Scorer& scorer);
std::shared_ptr<const Bounds> make_bounds(const Scorers& scorers, int n_threads);
Array<float> score(const RowsView& rows, const Scorer& scorer, const ScoreTypes& types,
                   int n_threads);
Nearest score_nearest(const RowsView& rows, const Scorers& scorers, const Bounds* bounds,
                      const ScoreTypes& types, int n_threads);

Judged judge(const RowsView& rows, const Scorers& scorers, const Bounds* bounds,
             const std::string& type, const HeldOutScores& held_out, int n_threads);

Array<double> leave_one_out(const TrainingRows& rows, const RemainingModel& model,
                            const ScoreTypes& types, int n_threads);
Array<double> leave_one_out_residuals(const TrainingRows& rows, Index n_components, int n_threads);
Array<double> leave_groups_out(const TrainingGroups& training,
                               const std::optional<RowGroups>& scored, const GroupModels& models,
                               const ScoreTypes& types, int n_threads);
Array<double> leave_groups_out_residuals(const TrainingGroups& training,
                                         const std::optional<RowGroups>& scored, Index n_components,
                                         int n_threads);
Array<double> leave_groups_out_rests(const TrainingGroups& training, Index n_components,
                                     int n_threads);

}  // namespace core
}  // namespace pydfm
