#include "pydfm/bounds.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include <Eigen/Eigenvalues>

#include "pydfm/eigensolver.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

namespace {

// Probes per class: their products cost this many of the k that they may save.
constexpr Index kResidualProbes = 4;
constexpr Index kMahalanobisProbes = 12;
// Directions that stand for all differences of the means.
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

// Rows (t, d) whose scatter is about that of `differences` (n, d): their leading right singular
// vectors times their singular values. None where squares leave float64.
Matrix<double> leading_rows(const Matrix<double>& differences, int n_threads) {
  const bool few = differences.rows() <= differences.cols();
  const Matrix<double> products = few ? Matrix<double>(differences * differences.transpose())
                                      : Matrix<double>(differences.transpose() * differences);
  if (!products.allFinite()) return Matrix<double>(0, differences.cols());
  const Eigenpairs pairs = eigh(view(products), {kDirections, 1}, n_threads);
  if (few) return pairs.vectors * differences;
  const Index t = pairs.vectors.rows();
  return pairs.values.head(t).cwiseMax(0).cwiseSqrt().asDiagonal() * pairs.vectors;
}

// Orthonormal rows (at most `count`, n): the leading right singular vectors of `rows` (t, n), of
// those whose singular values are not rounding beside `scale`.
Matrix<double> leading_directions(const Matrix<double>& rows, double scale, Index count) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(rows * rows.transpose());
  const Index t = rows.rows();
  const double least = kLeastSingularValue * kLeastSingularValue * scale;
  Index rank = 0;
  while (rank < std::min(count, t) && solver.eigenvalues()[t - 1 - rank] > least) ++rank;
  Matrix<double> directions =
      solver.eigenvectors().rightCols(rank).rowwise().reverse().transpose() * rows;
  directions.rowwise().normalize();
  return directions;
}

}  // namespace

Bounds::Group Bounds::make_group(Part part, const std::vector<const Scorer*>& scorers,
                                 Index first_class, const Vector<double>& centre,
                                 const Matrix<double>& spread) {
  const Index n_probes = probes_per_class(part);
  const auto all = static_cast<Index>(scorers.size());
  const Index n_classes = std::min(kGroupProbes / n_probes, all - first_class);
  const Index d = centre.size();
  Matrix<double> probes = Matrix<double>::Zero(n_probes * n_classes, d);
  Matrix<double> offsets = Matrix<double>::Zero(n_probes, n_classes);
  Matrix<double> precisions = Matrix<double>::Zero(n_probes, n_classes);
  Matrix<double> differences(spread.rows() + 1, d);
  differences.topRows(spread.rows()) = spread;
  for (Index c = 0; c < n_classes; ++c) {
    const SubspaceView& subspace = scorers[static_cast<std::size_t>(first_class + c)]->subspace();
    const auto& w = subspace.components;
    const Vector<double> offset = subspace.mean - centre;
    // The scatter of all means about this one.
    differences.bottomRows(1) = std::sqrt(static_cast<double>(all)) * offset.transpose();
    Matrix<double> images = differences * w.transpose();
    Matrix<double> found;
    if (part == Part::kResidual) {
      images = differences - images * w;
      const double scale = differences.rowwise().squaredNorm().maxCoeff();
      found = leading_directions(images, scale, n_probes);
      precisions.col(c).head(found.rows()).setOnes();
    } else {
      const Vector<double> roots = subspace.variances.cwiseSqrt().cwiseInverse();
      images = images * roots.asDiagonal();
      const double scale = images.rowwise().squaredNorm().sum();
      const Matrix<double> directions =
          leading_directions(images, scale, n_probes) * roots.asDiagonal();
      precisions.col(c).head(directions.rows()) = directions.rowwise().squaredNorm();
      found = directions.rowwise().normalized() * w;
    }
    for (Index j = 0; j < found.rows(); ++j) {
      probes.row(j * n_classes + c) = found.row(j);
      offsets(j, c) = found.row(j).dot(offset);
    }
  }
  Vector<double> roots = precisions.colwise().sum().cwiseSqrt();
  return {first_class,
          n_classes,
          Projection(view(centre), view(probes)),
          std::move(offsets),
          std::move(precisions),
          std::move(roots)};
}

Bounds::Bounds(const std::vector<const Scorer*>& scorers, int n_threads) {
  if (scorers.empty()) return;
  const auto n = static_cast<Index>(scorers.size());
  Matrix<double> means(n, scorers.front()->features());
  for (Index c = 0; c < n; ++c) {
    means.row(c) = scorers[static_cast<std::size_t>(c)]->subspace().mean;
  }
  centre_ = means.colwise().mean();
  means.rowwise() -= centre_.transpose();
  const Matrix<double> spread = leading_rows(means, n_threads);
  for (const Part part : {Part::kResidual, Part::kMahalanobis}) {
    const Index step = kGroupProbes / probes_per_class(part);
    std::vector<std::optional<Group>> made(static_cast<std::size_t>((n + step - 1) / step));
    parallel_for(static_cast<Index>(made.size()), n_threads, [&](Index task) {
      made[static_cast<std::size_t>(task)].emplace(
          make_group(part, scorers, task * step, centre_, spread));
    });
    std::vector<Group>& to = part == Part::kResidual ? residual_ : mahalanobis_;
    for (std::optional<Group>& group : made) to.push_back(std::move(*group));
  }
}

template <typename Scalar>
void Bounds::find(Part part, const MatrixView<Scalar>& rows, const std::vector<Index>& which,
                  Matrix<float>& low) const {
  const auto n = static_cast<Index>(which.size());
  const double error = 2 * product_error(centre_.size());
  Projection::Tile tile(n);
  Matrix<double> sums;
  for (Index first = 0; first < n; first += kTileRows) {
    const Index count = std::min(kTileRows, n - first);
    for (const Group& group : groups(part)) {
      group.projection.project(rows, which.data() + first, count, tile);
      const Index width = group.projection.width();
      sums.resize(count, group.n_classes);
      for (Index i = 0; i < count; ++i) {
        const double total = tile.totals[i];
        if (!(total >= kLeastEnergy && total <= kMostEnergy)) {
          sums.row(i).setZero();
          continue;
        }
        const MatrixView<double> products(tile.projected.data() + i * width, group.offsets.rows(),
                                          group.n_classes);
        sums.row(i) = ((products - group.offsets).array().square() * group.precisions.array())
                          .colwise()
                          .sum();
        sums.row(i) = (sums.row(i).array().sqrt() -
                       error * std::sqrt(total) * group.roots.transpose().array())
                          .max(0.0)
                          .square()
                          .min(kLargestBound) *
                      (1 - kSlack);
      }
      low.block(group.first_class, first, group.n_classes, count) =
          sums.transpose().template cast<float>();
    }
  }
}

template void Bounds::find(Part, const MatrixView<float>&, const std::vector<Index>&,
                           Matrix<float>&) const;
template void Bounds::find(Part, const MatrixView<double>&, const std::vector<Index>&,
                           Matrix<float>&) const;

}  // namespace pydfm
