#include "stats/bounds.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "kernels/matrix_products.hpp"
#include "linalg/eigensolver.hpp"
#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

// Probes per class: their products cost this many of the k that they may save.
constexpr Index kResidualProbes = 4;
constexpr Index kMahalanobisProbes = 12;
// Directions that stand for all differences of the means; and as many probes of the residual, where
// classes share them.
constexpr Index kDirections = 16;
// Probes to a group: enough to pay for centring the rows once more.
constexpr Index kGroupProbes = 256;
// A singular value below this share of the largest gives no probe: rounding would turn it.
constexpr double kLeastSingularValue = 1e-3;
// For errors of float64, and the rounding of a bound to float32.
constexpr double kSlack = 1e-6;
constexpr double kLargestBound = 1e38;

Index probes_per_class(Bounds::Part part) {
  return part == Bounds::Part::kResidual ? kResidualProbes : kMahalanobisProbes;
}

// The largest squared length of a row.
double largest_square(const Matrix<double>& rows) {
  double largest = 0;
  for (Index i = 0; i < rows.rows(); ++i) largest = std::max(largest, rows.row(i).squaredNorm());
  return largest;
}

// Makes row i of `rows` scales[i] times as long.
void scale_rows(Matrix<double>& rows, const Vector<double>& scales) {
  for (Index i = 0; i < rows.rows(); ++i) rows.row(i) *= scales[i];
}

// Makes column j of `rows` scales[j] times as large.
void scale_columns(Matrix<double>& rows, const Vector<double>& scales) {
  for (Index i = 0; i < rows.rows(); ++i) {
    for (Index j = 0; j < rows.cols(); ++j) rows(i, j) *= scales[j];
  }
}

// Makes each row one long; returns what their lengths were, squared.
Vector<double> normalise_rows(Matrix<double>& rows) {
  Vector<double> squares(rows.rows());
  for (Index i = 0; i < rows.rows(); ++i) {
    squares[i] = rows.row(i).squaredNorm();
    if (squares[i] > 0) rows.row(i) *= 1 / std::sqrt(squares[i]);
  }
  return squares;
}

// Rows (t, d) whose scatter is about that of `differences` (n, d): their leading right singular
// vectors times their singular values. None where squares leave float64.
Matrix<double> leading_rows(const Matrix<double>& differences, int n_threads) {
  const bool few = differences.rows() <= differences.cols();
  const Matrix<double> products = few ? product(differences, differences.transpose())
                                      : product(differences.transpose(), differences);
  if (!products.allFinite()) return Matrix<double>(0, differences.cols());
  Eigenpairs pairs = eigh(view(products), {kDirections, 1}, n_threads);
  if (few) return product(pairs.vectors, differences);
  for (double& value : pairs.values) value = std::sqrt(std::max(value, 0.0));
  scale_rows(pairs.vectors, pairs.values);
  return std::move(pairs.vectors);
}

// Orthonormal rows (at most `count`, n): the leading right singular vectors of `rows` (t, n), of
// those whose singular values are not rounding beside `scale`.
Matrix<double> leading_directions(const Matrix<double>& rows, double scale, Index count) {
  const Eigenpairs pairs = eigh(view(product(rows, rows.transpose())), {count, 1}, 1);
  const double least = kLeastSingularValue * kLeastSingularValue * scale;
  Index rank = 0;
  while (rank < pairs.vectors.rows() && pairs.values[rank] > least) ++rank;
  Matrix<double> directions = product(pairs.vectors.topRows(rank), rows);
  normalise_rows(directions);
  return directions;
}

Vector<double> inverse(const VectorView<double>& values) {
  Vector<double> inverse(values.size());
  for (Index i = 0; i < values.size(); ++i) inverse[i] = 1 / values[i];
  return inverse;
}

// Vectors of features (r, d), each of length 1, whose squared products with v, times the precisions
// (r,), add up to no more than the part of a score.
struct Probes {
  Matrix<double> vectors;
  Vector<double> precisions;
};

// The best for telling from each other rows that differ as `differences` (n, d) do.
Probes find_probes(Bounds::Part part, const SubspaceView& subspace,
                   const Matrix<double>& differences, Index count) {
  if (differences.rows() == 0) return {Matrix<double>(0, differences.cols()), Vector<double>(0)};
  const auto& w = subspace.components;
  Matrix<double> projected = product(differences, w.transpose());
  if (part == Bounds::Part::kResidual) {
    Matrix<double> rest = differences;
    add_product(projected, w, rest, -1);
    Probes probes{leading_directions(rest, largest_square(differences), count), {}};
    probes.precisions.setOnes(probes.vectors.rows());
    return probes;
  }
  Vector<double> roots = inverse(subspace.variances);
  for (double& root : roots) root = std::sqrt(root);
  scale_columns(projected, roots);
  Matrix<double> directions = leading_directions(projected, largest_square(projected), count);
  scale_columns(directions, roots);
  Vector<double> precisions = normalise_rows(directions);
  return {product(directions, w), std::move(precisions)};
}

}  // namespace

Bounds::Group Bounds::group_of_own_probes(Part part, const std::vector<const Scorer*>& scorers,
                                          Index first_class, const Matrix<double>& spread) const {
  const Index n_probes = probes_per_class(part);
  const auto all = static_cast<Index>(scorers.size());
  const Index n_classes = std::min(kGroupProbes / n_probes, all - first_class);
  Matrix<double> vectors = Matrix<double>::Zero(n_probes * n_classes, centre_.size());
  Matrix<double> offsets = Matrix<double>::Zero(n_probes, n_classes);
  Matrix<double> precisions = Matrix<double>::Zero(n_probes, n_classes);
  // Whose scatter is that of all means about this one.
  Matrix<double> differences(spread.rows() + 1, spread.cols());
  differences.topRows(spread.rows()) = spread;
  for (Index c = 0; c < n_classes; ++c) {
    const SubspaceView& subspace = scorers[static_cast<std::size_t>(first_class + c)]->subspace();
    const Vector<double> offset = subspace.mean - centre_;
    differences.bottomRows(1) = std::sqrt(static_cast<double>(all)) * offset.transpose();
    const Probes probes = find_probes(part, subspace, differences, n_probes);
    for (Index j = 0; j < probes.vectors.rows(); ++j) {
      vectors.row(j * n_classes + c) = probes.vectors.row(j);
      offsets(j, c) = probes.vectors.row(j).dot(offset);
      precisions(j, c) = probes.precisions[j];
    }
  }
  return {first_class, Projection(view(centre_), view(vectors)), offsets, precisions};
}

Bounds::Group Bounds::group_of_shared_probes(Part part, const std::vector<const Scorer*>& scorers,
                                             const Matrix<double>& spread) const {
  const SubspaceView& one = scorers.front()->subspace();
  // One product for all classes: then the bound on mahalanobis may be mahalanobis itself.
  const Probes probes = part == Part::kMahalanobis ? Probes{one.components, inverse(one.variances)}
                                                   : find_probes(part, one, spread, kDirections);
  const auto n_classes = static_cast<Index>(scorers.size());
  Matrix<double> offsets(probes.vectors.rows(), n_classes);
  for (Index c = 0; c < n_classes; ++c) {
    const auto& mean = scorers[static_cast<std::size_t>(c)]->subspace().mean;
    for (Index j = 0; j < offsets.rows(); ++j) {
      offsets(j, c) = probes.vectors.row(j).dot(mean - centre_);
    }
  }
  Matrix<double> precisions(offsets.rows(), n_classes);
  for (Index j = 0; j < offsets.rows(); ++j) precisions.row(j).setConstant(probes.precisions[j]);
  return {0, Projection(view(centre_), view(probes.vectors)), offsets, precisions};
}

Bounds::Bounds(const std::vector<const Scorer*>& scorers, int n_threads) {
  if (scorers.empty()) return;
  const auto n = static_cast<Index>(scorers.size());
  Matrix<double> means(n, scorers.front()->features());
  for (Index c = 0; c < n; ++c) {
    means.row(c) = scorers[static_cast<std::size_t>(c)]->subspace().mean;
  }
  centre_.setZero(means.cols());
  for (Index c = 0; c < n; ++c) centre_ += means.row(c);
  centre_ /= static_cast<double>(n);
  for (Index c = 0; c < n; ++c) means.row(c) -= centre_.transpose();
  const Matrix<double> spread = leading_rows(means, n_threads);
  const SubspaceView& one = scorers.front()->subspace();
  shared_ = std::all_of(scorers.begin(), scorers.end(), [&](const Scorer* scorer) {
    const SubspaceView& other = scorer->subspace();
    return other.components.data() == one.components.data() &&
           other.components.rows() == one.components.rows() && other.variances == one.variances;
  });
  for (const Part part : {Part::kResidual, Part::kMahalanobis}) {
    std::vector<Group>& to = part == Part::kResidual ? residual_ : mahalanobis_;
    if (shared_) {
      to.push_back(group_of_shared_probes(part, scorers, spread));
      continue;
    }
    const Index step = kGroupProbes / probes_per_class(part);
    std::vector<std::optional<Group>> made(static_cast<std::size_t>((n + step - 1) / step));
    parallel_for(static_cast<Index>(made.size()), n_threads, [&](Index task) {
      made[static_cast<std::size_t>(task)].emplace(
          group_of_own_probes(part, scorers, task * step, spread));
    });
    for (std::optional<Group>& group : made) to.push_back(std::move(*group));
  }
}

void Bounds::find(Part part, const RowsView& rows, const std::vector<Index>& which,
                  Matrix<float>& low) const {
  const auto n = static_cast<Index>(which.size());
  const double error = 2 * product_error(centre_.size());
  Projection::Tile tile(n);
  Matrix<double> sums;
  for (Index first = 0; first < n; first += kTileRows) {
    const Index count = std::min(kTileRows, n - first);
    for (const Group& group : groups(part)) {
      poll();
      group.projection.project(rows, which.data() + first, count, tile);
      const Index n_classes = group.offsets.cols();
      const Eigen::ArrayXXd roots = group.precisions.colwise().sum().cwiseSqrt();
      sums.setZero(count, n_classes);
      for (Index i = 0; i < count; ++i) {
        const double total = tile.totals[i];
        if (!(total >= kLeastEnergy && total <= kMostEnergy)) continue;
        const double* const products = tile.projected.data() + i * group.projection.width();
        auto sum = sums.row(i).array();
        for (Index j = 0; j < group.offsets.rows(); ++j) {
          const auto offsets = group.offsets.row(j).array();
          const auto precisions = group.precisions.row(j).array();
          if (shared_) {
            sum += (offsets - products[j]).square() * precisions;
          } else {
            using Products = Eigen::Map<const Eigen::Array<double, 1, Eigen::Dynamic>>;
            sum += (Products(products + j * n_classes, n_classes) - offsets).square() * precisions;
          }
        }
        const double product = error * std::sqrt(total);
        sum = (sum.sqrt() - product * roots).max(0.0).square().min(kLargestBound) * (1 - kSlack);
      }
      low.block(group.first_class, first, n_classes, count) = sums.transpose().cast<float>();
    }
  }
}

}  // namespace pydfm
