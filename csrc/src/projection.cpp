#include "pydfm/projection.hpp"

#include <cmath>
#include <type_traits>

namespace pydfm {

namespace {

// Squares of a slice are summed up in float32 in this many parts.
constexpr Index kLanes = 16;
using Lanes = Eigen::Array<float, kLanes, 1>;

// v = x - centre for `depth` features; returns |v|^2.
template <typename Subtract>
double subtract_centre(Index depth, float* v, const Subtract& subtract) {
  Lanes squares = Lanes::Zero();
  Index p = 0;
  for (; p + kLanes <= depth; p += kLanes) {
    const Lanes lanes = subtract(p, std::integral_constant<Index, kLanes>{});
    squares += lanes * lanes;
    Eigen::Map<Lanes>(v + p) = lanes;
  }
  double energy = 0;
  for (; p < depth; ++p) {
    v[p] = subtract(p, std::integral_constant<Index, 1>{}).value();
    energy += static_cast<double>(v[p]) * v[p];
  }
  for (Index i = 0; i < kLanes; ++i) energy += squares[i];
  return energy;
}

}  // namespace

Projection::Projection(const VectorView<double>& centre, const MatrixView<double>& components)
    : centre_(centre),
      panels_(components),
      mean_(centre.cast<float>()),
      mean_rest_((centre - mean_.cast<double>()).cast<float>()) {}

template <typename Scalar>
void Projection::project(const MatrixView<Scalar>& rows, const Index* which, Index count,
                         Tile& tile) const {
  const Index d = features();
  const Index size = count * width();
  if (tile.products.size() < size) {
    tile.products.resize(size);
    tile.projected.resize(size);
  }
  tile.totals.head(count).setZero();

  for (Index begin = 0; begin < d; begin += detail::kSliceFeatures) {
    const Index depth = std::min(detail::kSliceFeatures, d - begin);
    for (Index i = 0; i < count; ++i) {
      const Scalar* const x = rows.data() + which[i] * d + begin;
      const auto subtract = [&](Index p, auto lanes) {
        using Features = Eigen::Map<const Eigen::Array<Scalar, lanes.value, 1>>;
        if constexpr (std::is_same_v<Scalar, float>) {
          // In two steps, so that the rounding of a large mean is not that of the difference.
          return (Features(x + p) - Features(mean_.data() + begin + p)) -
                 Features(mean_rest_.data() + begin + p);
        } else {
          return (Features(x + p) - Features(centre_.data() + begin + p)).template cast<float>();
        }
      };
      tile.totals[i] += subtract_centre(depth, tile.rows.row(i).data(), subtract);
    }
    panels_.multiply(tile.rows.data(), count, begin, depth, tile.products.data());
    if (begin == 0) {
      tile.projected.head(size) = tile.products.head(size).cast<double>();
    } else {
      tile.projected.head(size) += tile.products.head(size).cast<double>();
    }
  }
}

// Rounding of v and W, and of sums over runs of features, whose errors are independent of each
// other. The largest that was seen, over spectra, d from 3 to 65,536 and all instruction sets, is
// 3.4e-7 at d = 64 and falls about as d^(-1/2) from there.
double product_error(Index n_features) {
  const double runs = static_cast<double>(n_features) / static_cast<double>(detail::kRunFeatures);
  return 3.5e-7 / std::cbrt(std::max(runs, 1.0));
}

template void Projection::project(const MatrixView<float>&, const Index*, Index, Tile&) const;
template void Projection::project(const MatrixView<double>&, const Index*, Index, Tile&) const;

}  // namespace pydfm
