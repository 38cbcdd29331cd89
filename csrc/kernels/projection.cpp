#include "kernels/projection.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/matrix_products.hpp"
#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

// Squares of a slice are summed up in this many parts: in float64, since those of constant rows
// would all be rounded the same way.
constexpr Index kLanes = 16;
using Lanes = Eigen::Array<float, kLanes, 1>;

// v = x - centre for `depth` features; returns |v|^2.
template <typename Subtract>
double subtract_lanes(Index depth, float* v, const Subtract& subtract) {
  Eigen::Array<double, kLanes, 1> squares = Eigen::Array<double, kLanes, 1>::Zero();
  Index p = 0;
  for (; p + kLanes <= depth; p += kLanes) {
    const Lanes lanes = subtract(p, std::integral_constant<Index, kLanes>{});
    squares += lanes.template cast<double>().square();
    Eigen::Map<Lanes>(v + p) = lanes;
  }
  double energy = 0;
  for (; p < depth; ++p) {
    v[p] = subtract(p, std::integral_constant<Index, 1>{}).value();
    energy += static_cast<double>(v[p]) * v[p];
  }
  return energy + squares.sum();
}

template <typename Scalar>
void prefetch(const Scalar* x, Index depth) {
  constexpr Index kLine = 64 / Index{sizeof(Scalar)};
  for (Index p = 0; p < depth; p += kLine) Eigen::internal::prefetch(x + p);
}

}  // namespace

Projection::Projection(const VectorView<double>& centre, const MatrixView<double>& components)
    : centre_(centre),
      panels_(components),
      mean_(centre.cast<float>()),
      mean_rest_((centre - mean_.cast<double>()).cast<float>()) {}

double Projection::subtract_centre(const float* x, Index begin, Index depth, float* v) const {
  const float* const mean = mean_.data() + begin;
  const float* const rest = mean_rest_.data() + begin;
  return subtract_lanes(depth, v, [&](Index p, auto lanes) {
    using Features = Eigen::Map<const Eigen::Array<float, lanes.value, 1>>;
    // In two steps, so that the rounding of a large mean is not that of the difference.
    return (Features(x + p) - Features(mean + p)) - Features(rest + p);
  });
}

double Projection::subtract_centre(const double* x, Index begin, Index depth, float* v) const {
  const double* const centre = centre_.data() + begin;
  return subtract_lanes(depth, v, [&](Index p, auto lanes) {
    using Features = Eigen::Map<const Eigen::Array<double, lanes.value, 1>>;
    return (Features(x + p) - Features(centre + p)).template cast<float>();
  });
}

void Projection::project(const RowsView& rows, const Index* which, Index count, Tile& tile) const {
  const Index d = features();
  const Index size = count * width();
  if (tile.projected.size() < size) tile.projected.resize(size);
  tile.projected.head(size).setZero();
  tile.totals.head(count).setZero();

  for (Index begin = 0; begin < d; begin += kSliceFeatures) {
    poll();
    const Index depth = std::min(kSliceFeatures, d - begin);
    for (Index first = 0; first < count; first += kStripRows) {
      const Index some = std::min(kStripRows, count - first);
      rows.visit([&](const auto* data) {
        for (Index i = first; i < first + some; ++i) {
          // Rows of many features lie far apart: the processor does not see the next strip coming.
          if (i + kStripRows < count) prefetch(data + which[i + kStripRows] * d + begin, depth);
          tile.totals[i] += subtract_centre(data + which[i] * d + begin, begin, depth,
                                            tile.strip.row(i - first).data());
        }
      });
      panels_.add_products(tile.strip.data(), some, begin, tile.projected.data() + first * width());
    }
  }
}

// Rounding of v and W, and of sums over runs of features, whose errors are independent of each
// other. The largest that was seen, over spectra, d from 3 to 65,536 and all instruction sets, is
// 3.4e-7 at d = 64 and falls about as d^(-1/2) from there.
double product_error(Index n_features) {
  const double runs = static_cast<double>(n_features) / static_cast<double>(kRunFeatures);
  return 3.5e-7 / std::cbrt(std::max(runs, 1.0));
}

Matrix<double> coordinates(const RowsView& rows, const VectorView<double>& mean,
                           const MatrixView<double>& components, int n_threads) {
  Matrix<double> result = Matrix<double>::Zero(rows.rows(), components.rows());
  constexpr Index kRows = 256;
  parallel_blocks(rows.rows(), kRows, n_threads, [&](Index begin, Index count) {
    Matrix<double> centred(count, rows.cols());
    for (Index i = 0; i < count; ++i) {
      centre_row(rows, begin + i, 0, rows.cols(), mean.data(), centred.row(i).data());
    }
    add_product(centred, components.transpose(), result.middleRows(begin, count));
  });
  return result;
}

Matrix<double> residuals(const RowsView& rows, const VectorView<double>& mean,
                         const MatrixView<double>& components, int n_threads) {
  Matrix<double> result(rows.rows(), rows.cols());
  // Products are always of this many rows, zeros among them: sums are then taken in one order.
  constexpr Index kRows = 16;
  parallel_blocks(rows.rows(), kRows, n_threads, [&](Index begin, Index count) {
    Matrix<double> v = Matrix<double>::Zero(kRows, rows.cols());
    for (Index i = 0; i < count; ++i) {
      centre_row(rows, begin + i, 0, rows.cols(), mean.data(), v.row(i).data());
    }
    const Matrix<double> z = product(v, components.transpose());
    add_product(z, components, v, -1);
    result.middleRows(begin, count) = v.topRows(count);
  });
  return result;
}

void centre_row(const RowsView& rows, Index i, Index first, Index count, const double* mean,
                double* v) {
  rows.visit([&](const auto* data) {
    const auto* const x = data + i * rows.cols() + first;
    for (Index p = 0; p < count; ++p) v[p] = static_cast<double>(x[p]) - mean[p];
  });
}

bool is_finite(const RowsView& rows, Index i) {
  return rows.visit([&](const auto* data) {
    const auto* const x = data + i * rows.cols();
    constexpr auto kLargest =
        std::numeric_limits<std::remove_cv_t<std::remove_reference_t<decltype(*x)>>>::max();
    int n_bad = 0;
    for (Index p = 0; p < rows.cols(); ++p) n_bad += std::abs(x[p]) <= kLargest ? 0 : 1;
    return n_bad == 0;
  });
}

}  // namespace pydfm
