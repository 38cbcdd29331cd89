// The core behind plain views: from them to Eigen's, and back.
#include "core.hpp"

#include <utility>

#include "held_out/leave_groups_out.hpp"
#include "held_out/leave_one_out.hpp"
#include "kernels/matrix_products.hpp"
#include "linalg/eigensolver.hpp"
#include "stats/bounds.hpp"
#include "stats/moments.hpp"
#include "stats/nearest.hpp"
#include "stats/scoring.hpp"

namespace pydfm::core {

namespace {

MatrixView<double> map(const Matrix& m) { return {m.data, m.rows, m.cols}; }
VectorView<double> map(const Vector& v) { return {v.data, v.size}; }
VectorView<std::int64_t> map(const Integers& v) { return {v.data, v.size}; }
pydfm::MomentsView map(const MomentsView& m) { return {m.count, map(m.mean), map(m.scatter)}; }
pydfm::TrainingRows map(const TrainingRows& rows) {
  return {map(rows.coordinates), map(rows.eigenvalues), map(rows.rho), rows.resolution};
}

pydfm::RowGroups map(const RowGroups& groups) { return {map(groups.rows), map(groups.starts)}; }

std::optional<pydfm::RowGroups> map(const std::optional<RowGroups>& groups) {
  if (!groups) return std::nullopt;
  return map(*groups);
}

pydfm::TrainingGroups map(const TrainingGroups& training) {
  return {map(training.groups), map(training.eigenvalues), map(training.class_sizes),
          map(training.degrees_of_freedom), training.resolution};
}

Moments to_arrays(pydfm::Moments&& m) {
  return {m.count, to_array(std::move(m.mean)), to_array(std::move(m.scatter))};
}

std::vector<ScoreType> score_types(const ScoreTypes& names) {
  std::vector<ScoreType> types;
  for (const std::string& name : names) types.push_back(score_type(name));
  return types;
}

}  // namespace

const char* instruction_set() { return PYDFM_INSTRUCTION_SET; }

std::string eigen_version() {
  return std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
         std::to_string(EIGEN_MINOR_VERSION);
}

Moments moments(const RowsView& rows, int n_threads) {
  return to_arrays(pydfm::moments(rows, n_threads));
}

Moments merge_moments(const MomentsView& a, const MomentsView& b) {
  return to_arrays(merge(map(a), map(b)));
}

Moments subtract_moments(const MomentsView& a, const MomentsView& b) {
  return to_arrays(subtract(map(a), map(b)));
}

Gram gram(const RowsView& rows, int n_threads) {
  pydfm::Gram g = pydfm::gram(rows, n_threads);
  return {to_array(std::move(g.mean)), to_array(std::move(g.gram))};
}

Array<double> components_from_gram(const RowsView& rows, const Vector& mean, const Vector& values,
                                   const Matrix& vectors, int n_threads) {
  return to_array(
      pydfm::components_from_gram(rows, map(mean), map(values), map(vectors), n_threads));
}

Array<double> coordinates(const RowsView& rows, const Vector& mean, const Matrix& components,
                          int n_threads) {
  return to_array(pydfm::coordinates(rows, map(mean), map(components), n_threads));
}

Array<double> residuals(const RowsView& rows, const Vector& mean, const Matrix& components,
                        int n_threads) {
  return to_array(pydfm::residuals(rows, map(mean), map(components), n_threads));
}

Array<double> product(const Matrix& a, const Matrix& b, bool transposed, int n_threads) {
  const MatrixView<double> factor = map(b);
  const Strided<const double> right =
      transposed ? Strided<const double>(factor.transpose()) : Strided<const double>(factor);
  return to_array(pydfm::product(map(a), right, n_threads));
}

Eigenpairs eigh(const Matrix& a, Index count, double share, int n_threads) {
  pydfm::Eigenpairs pairs = pydfm::eigh(map(a), {count, share}, n_threads);
  return {to_array(std::move(pairs.values)), to_array(std::move(pairs.vectors))};
}

std::shared_ptr<const Scorer> make_scorer(const Vector& mean, const Matrix& components,
                                          const Vector& variances, double noise_variance) {
  return std::make_shared<const Scorer>(
      SubspaceView{map(mean), map(components), map(variances), noise_variance});
}

Index n_features(const Scorer& scorer) { return scorer.features(); }

std::shared_ptr<const Bounds> make_bounds(const Scorers& scorers, int n_threads) {
  return std::make_shared<const Bounds>(scorers, n_threads);
}

Array<float> score(const RowsView& rows, const Scorer& scorer, const ScoreTypes& types,
                   int n_threads) {
  return to_array(pydfm::score(rows, scorer, score_types(types), n_threads));
}

Nearest score_nearest(const RowsView& rows, const Scorers& scorers, const Bounds* bounds,
                      const ScoreTypes& types, int n_threads) {
  NearestClasses nearest =
      pydfm::score_nearest(rows, scorers, bounds, score_types(types), n_threads);
  return {to_array(std::move(nearest.scores)), to_array(std::move(nearest.classes))};
}

Judged judge(const RowsView& rows, const Scorers& scorers, const Bounds* bounds,
             const std::string& type, const HeldOutScores& held_out, int n_threads) {
  JudgedRows judged = pydfm::judge(rows, scorers, bounds, score_type(type),
                                   {held_out.scores, held_out.weights, held_out.starts,
                                    map(held_out.n_units), map(held_out.thresholds)},
                                   n_threads);
  return {{to_array(std::move(judged.nearest.scores)), to_array(std::move(judged.nearest.classes))},
          to_array(std::move(judged.p_values)),
          to_array(std::move(judged.margins))};
}

Array<double> leave_one_out(const TrainingRows& rows, const RemainingModel& model,
                            const ScoreTypes& types, int n_threads) {
  return to_array(pydfm::leave_one_out(
      map(rows),
      {model.n_components, model.degrees_of_freedom, model.n_variances, model.n_features},
      score_types(types), n_threads));
}

Array<double> leave_one_out_residuals(const TrainingRows& rows, Index n_components, int n_threads) {
  return to_array(pydfm::leave_one_out_residuals(map(rows), n_components, n_threads));
}

Array<double> leave_groups_out(const TrainingGroups& training,
                               const std::optional<RowGroups>& scored, const GroupModels& models,
                               const ScoreTypes& types, int n_threads) {
  return to_array(pydfm::leave_groups_out(map(training), map(scored),
                                          {models.n_components,
                                           map(models.n_variances),
                                           models.n_features,
                                           {models.shrinkage, models.floor}},
                                          score_types(types), n_threads));
}

Array<double> leave_groups_out_residuals(const TrainingGroups& training,
                                         const std::optional<RowGroups>& scored, Index n_components,
                                         int n_threads) {
  return to_array(
      pydfm::leave_groups_out_residuals(map(training), map(scored), n_components, n_threads));
}

Array<double> leave_groups_out_rests(const TrainingGroups& training, Index n_components,
                                     int n_threads) {
  return to_array(pydfm::leave_groups_out_rests(map(training), n_components, n_threads));
}

}  // namespace pydfm::core
