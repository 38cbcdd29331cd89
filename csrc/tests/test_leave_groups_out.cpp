#include "held_out/leave_groups_out.hpp"

#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include <Eigen/Eigenvalues>

#include "check.hpp"
#include "random_class.hpp"

namespace {

using pydfm::GroupModels;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::RowGroups;
using pydfm::TrainingGroups;
using pydfm::Vector;
using pydfm::view;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::check_throws;
using pydfm::testing::kTypes;
using pydfm::testing::largest;
using pydfm::testing::normal;

// Rows of one class, centred, in the coordinates of their scatter; all of them, in groups of m.
struct Training {
  Index m, d;
  Matrix<double> coordinates;
  Vector<double> eigenvalues, class_sizes, degrees;
  Vector<std::int64_t> starts, n_variances;

  Training(Index n, Index n_features, Index group_size, double decay, unsigned seed)
      : m(group_size), d(n_features) {
    Matrix<double> rows = normal(n, d, seed);
    for (Index j = 0; j < d; ++j) rows.col(j) *= std::pow(static_cast<double>(j + 1), -decay);
    rows.rowwise() -= rows.colwise().mean().eval();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(rows.transpose() * rows);
    const Index r = std::min(n - 1, d);
    eigenvalues = solver.eigenvalues().reverse().head(r);
    coordinates = rows * solver.eigenvectors().rowwise().reverse().leftCols(r);
    const Index n_groups = n / m;
    starts.resize(n_groups + 1);
    for (Index g = 0; g <= n_groups; ++g) starts[g] = g * m;
    coordinates.conservativeResize(n_groups * m, r);
    class_sizes = Vector<double>::Constant(n_groups, static_cast<double>(n));
    degrees = Vector<double>::Constant(n_groups, static_cast<double>(n - m - 1));
    n_variances = Vector<std::int64_t>::Constant(n_groups, std::min(n - m, d));
  }

  TrainingGroups groups() const {
    return {{view(coordinates), view(starts)},
            view(eigenvalues),
            view(class_sizes),
            view(degrees),
            1e-13 * eigenvalues[0]};
  }
  GroupModels models(Index k) const { return {k, view(n_variances), d, {}}; }

  // Scores (4, m) and residuals (m, r) of group g by Eigen's decomposition of what is left.
  std::pair<Matrix<double>, Matrix<double>> expected(Index g, Index k) const {
    const auto z = coordinates.middleRows(g * m, m);
    const Eigen::RowVectorXd mean = z.colwise().mean();
    const double left = class_sizes[g] - static_cast<double>(m);
    const double factor = static_cast<double>(m * m) / left;
    Eigen::MatrixXd scatter = eigenvalues.asDiagonal();
    scatter -= z.transpose() * z + factor * mean.transpose() * mean;
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(scatter);
    const Vector<double> values = solver.eigenvalues().reverse().cwiseMax(0.0) / degrees[g];
    const Matrix<double> vectors = solver.eigenvectors().rowwise().reverse().leftCols(k);
    const Matrix<double> rows = z.rowwise() + static_cast<double>(m) / left * mean;
    const Matrix<double> projected = rows * vectors;
    const Matrix<double> residuals = rows - projected * vectors.transpose();
    const double noise =
        values.tail(values.size() - k).sum() / static_cast<double>(n_variances[g] - k);
    const double log2pi = std::log(2 * std::acos(-1.0));
    const double rest = static_cast<double>(d - k);
    Matrix<double> scores(4, m);
    scores.row(0) = residuals.rowwise().squaredNorm();
    scores.row(1) = projected.cwiseAbs2() * values.head(k).cwiseInverse();
    scores.row(2) = 0.5 * (scores.row(1).array() + values.head(k).array().log().sum() +
                           static_cast<double>(k) * log2pi);
    scores.row(3) = scores.row(2).array() +
                    0.5 * (scores.row(0).array() / noise + rest * (std::log(noise) + log2pi));
    return {scores, residuals};
  }
};

void scores_are_those_of_the_matrix_without_the_group() {
  unsigned seed = 0;
  for (const auto& [n, d] : {std::pair<Index, Index>{40, 15}, {40, 60}, {70, 90}}) {
    for (const Index m : {1, 2, 3, 8, 19}) {
      for (const double decay : {0.0, 1.0}) {
        const Training training(n, d, m, decay, ++seed);
        const Index rank = std::min(n - m - 1, d);
        for (const Index k : {Index{1}, rank / 3, rank - 2}) {
          const auto scores = pydfm::leave_groups_out(training.groups(), std::nullopt,
                                                      training.models(k), kTypes, 2);
          const auto residuals =
              pydfm::leave_groups_out_residuals(training.groups(), std::nullopt, k, 2);
          double worst = 0, apart = 0;
          for (Index g = 0; g < training.class_sizes.size(); ++g) {
            const auto [want, want_residuals] = training.expected(g, k);
            const Matrix<double> error = scores.middleCols(g * m, m) - want;
            const Matrix<double> size = 1 + want.cwiseAbs().array();
            worst = std::max(worst, largest(error.cwiseQuotient(size)));
            apart = std::max(apart, largest(residuals.middleRows(g * m, m) - want_residuals));
          }
          const std::string what = std::to_string(n) + ", " + std::to_string(d) + ", " +
                                   std::to_string(m) + ", " + std::to_string(k);
          check_at_most(worst, 1e-9, what + ", scores");
          check_at_most(apart, 1e-9, what + ", residuals");
        }
      }
    }
  }
}

void own_rows_can_be_given_as_others() {
  const Training training(50, 30, 3, 1.0, 7);
  Matrix<double> others = training.coordinates;
  for (Index g = 0; g < training.class_sizes.size(); ++g) {
    auto rows = others.middleRows(g * 3, 3);
    rows.rowwise() += 3.0 / 47.0 * rows.colwise().mean().eval();
  }
  const RowGroups scored{view(others), view(training.starts)};
  for (const pydfm::Regularization& regularization :
       {pydfm::Regularization{}, {true, 0.0}, {false, 0.1}}) {
    GroupModels models = training.models(9);
    models.regularization = regularization;
    const auto own = pydfm::leave_groups_out(training.groups(), std::nullopt, models, kTypes, 1);
    const auto given = pydfm::leave_groups_out(training.groups(), scored, models, kTypes, 2);
    check_at_most(largest(own - given), 1e-10 * largest(own), "own rows as others");
  }
}

void what_is_not_right_throws() {
  Training training(20, 5, 4, 1.0, 3);
  const auto score = [&] {
    pydfm::leave_groups_out(training.groups(), std::nullopt, training.models(2), kTypes, 1);
  };
  score();
  training.class_sizes[2] = 3;
  check_throws<std::invalid_argument>(score, "a group of more rows than its class");
  training.class_sizes[2] = 20;
  training.starts[1] = 9;
  check_throws<std::invalid_argument>(score, "starts that descend");
}

}  // namespace

int main() {
  scores_are_those_of_the_matrix_without_the_group();
  own_rows_can_be_given_as_others();
  what_is_not_right_throws();
  return pydfm::testing::result();
}
