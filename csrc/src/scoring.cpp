#include "pydfm/scoring.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "pydfm/parallel.hpp"

namespace pydfm {

namespace {

// Rows to a tile: enough to pay for reading the components once, few enough for the second cache.
constexpr Index kTileRows = 144;

// Error of float32 products relative to |v|: rounding of v and W, and of sums over runs of
// features, whose errors are independent of each other. The largest that was seen, over spectra, d
// from 3 to 65,536 and all instruction sets, is 3.4e-7 at d = 64 and falls about as d^(-1/2) from
// there.
double product_error(Index d) {
  const double runs = static_cast<double>(d) / static_cast<double>(detail::kRunFeatures);
  return 3.5e-7 / std::cbrt(std::max(runs, 1.0));
}

// Half of what is promised, the other half being left to rounding elsewhere.
constexpr double kTolerance = 5e-5;
// Below this share of |v|^2 a residual is computed by itself, not by subtraction in float64.
constexpr double kLeastShare = 1e-8;
// Energies at which the squares of single features come near the ends of float32.
constexpr double kLeastEnergy = 1e-28;
constexpr double kMostEnergy = 1e36;
// Rows to a task of the second, exact pass.
constexpr Index kExactRows = 48;
// Where the second pass has yet to write: no score is that, since to_float ends before infinity.
constexpr float kUncertain = std::numeric_limits<float>::infinity();

// Squares of a slice are summed up in float32 in this many parts.
constexpr Index kLanes = 16;
using Lanes = Eigen::Array<float, kLanes, 1>;

// v = x - mean for `depth` features; returns |v|^2.
template <typename Subtract>
double centre(Index depth, float* v, const Subtract& subtract) {
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

float to_float(double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kLargest, kLargest));
}

}  // namespace

// What a thread keeps from one tile, and one class, to the next.
struct Scorer::Tile {
  explicit Tile(Index n_rows)
      : rows(std::min(n_rows, kTileRows), detail::kRowStride),
        energies(static_cast<std::size_t>(rows.rows())) {}

  Matrix<float> rows;        // a slice of the centred rows
  Vector<float> products;    // of that slice, (count, width)
  Vector<double> projected;  // sum of the products of all slices, (count, width)
  std::vector<Energies> energies;
};

Scorer::Scorer(const SubspaceView& subspace)
    : subspace_(subspace),
      panels_(subspace.components),
      mean_(subspace.mean.cast<float>()),
      mean_rest_((subspace.mean - mean_.cast<double>()).cast<float>()),
      precisions_(Vector<double>::Zero(panels_.width())),
      precision_sum_(subspace.variances.cwiseInverse().sum()),
      product_error_(product_error(subspace.mean.size())) {
  const auto k = subspace.components.rows();
  precisions_.head(k) = subspace.variances.cwiseInverse();
  nll_constant_ = 0.5 * (subspace.variances.array().log().sum() + static_cast<double>(k) * kLog2Pi);
  const double rest = static_cast<double>(subspace.components.cols() - k);
  if (rest > 0) {
    noise_precision_ = 1 / subspace.noise_variance;
    noise_constant_ = 0.5 * rest * (std::log(subspace.noise_variance) + kLog2Pi);
  }
}

double Scorer::value(ScoreType type, const Energies& e) const {
  switch (type) {
    case ScoreType::kFre:
      return e.residual;
    case ScoreType::kMahalanobis:
      return e.mahalanobis;
    case ScoreType::kNll:
      return 0.5 * e.mahalanobis + nll_constant_;
    case ScoreType::kPpca:
      return 0.5 * (e.mahalanobis + e.residual * noise_precision_) + nll_constant_ +
             noise_constant_;
  }
  throw std::invalid_argument("unknown score type");
}

// With |dz_i| <= g |v|:
//   |d sum z_i^2|        <= 2 g |v| |z| + k g^2 |v|^2                <~ 2 g |v|^2
//   |d sum z_i^2 / l_i|  <= 2 g |v| sqrt(m sum 1/l_i) + g^2 |v|^2 sum 1/l_i   (Cauchy-Schwarz)
double Scorer::error(ScoreType type, const Energies& e) const {
  const double residual = 2 * product_error_ * e.total;
  const double spread = product_error_ * product_error_ * e.total * precision_sum_;
  const double mahalanobis = 2 * std::sqrt(spread * e.mahalanobis) + spread;
  switch (type) {
    case ScoreType::kFre:
      return residual;
    case ScoreType::kMahalanobis:
      return mahalanobis;
    case ScoreType::kNll:
      return 0.5 * mahalanobis;
    case ScoreType::kPpca:
      return 0.5 * (mahalanobis + residual * noise_precision_);
  }
  throw std::invalid_argument("unknown score type");
}

template <typename Scalar>
void Scorer::measure(const MatrixView<Scalar>& rows, Index first, Index count, Tile& tile) const {
  const Index d = features();
  const Index width = panels_.width();
  if (tile.products.size() < count * width) {
    tile.products.resize(count * width);
    tile.projected.resize(count * width);
  }
  for (Index i = 0; i < count; ++i) tile.energies[static_cast<std::size_t>(i)] = {0, 0, 0};

  for (Index begin = 0; begin < d; begin += detail::kSliceFeatures) {
    const Index depth = std::min(detail::kSliceFeatures, d - begin);
    for (Index i = 0; i < count; ++i) {
      const Scalar* const x = rows.data() + (first + i) * d + begin;
      const auto subtract = [&](Index p, auto lanes) {
        using Features = Eigen::Map<const Eigen::Array<Scalar, lanes.value, 1>>;
        if constexpr (std::is_same_v<Scalar, float>) {
          // In two steps, so that the rounding of a large mean is not that of the difference.
          return (Features(x + p) - Features(mean_.data() + begin + p)) -
                 Features(mean_rest_.data() + begin + p);
        } else {
          return (Features(x + p) - Features(subspace_.mean.data() + begin + p))
              .template cast<float>();
        }
      };
      tile.energies[static_cast<std::size_t>(i)].total +=
          centre(depth, tile.rows.row(i).data(), subtract);
    }
    panels_.multiply(tile.rows.data(), count, begin, depth, tile.products.data());
    if (begin == 0) {
      tile.projected.head(count * width) = tile.products.head(count * width).cast<double>();
    } else {
      tile.projected.head(count * width) += tile.products.head(count * width).cast<double>();
    }
  }

  for (Index i = 0; i < count; ++i) {
    Energies& e = tile.energies[static_cast<std::size_t>(i)];
    const auto squares = tile.projected.segment(i * width, width).array().square();
    e.residual = e.total - squares.sum();
    e.mahalanobis = (squares * precisions_.array()).sum();
  }
}

template <typename Scalar>
std::vector<Energies> Scorer::measure_exactly(const MatrixView<Scalar>& rows,
                                              const std::vector<Index>& which) const {
  const auto n = static_cast<Index>(which.size());
  const Index d = features();
  const Index k = subspace_.components.rows();
  std::vector<Energies> energies(which.size());
  Matrix<double> v(n, detail::kExactSlice + 8);
  Matrix<double> z = Matrix<double>::Zero(n, k);
  for (Index begin = 0; begin < d; begin += detail::kExactSlice) {
    const Index depth = std::min(detail::kExactSlice, d - begin);
    for (Index i = 0; i < n; ++i) {
      const std::size_t at = static_cast<std::size_t>(i);
      v.row(i).head(depth) = rows.row(which[at]).segment(begin, depth).template cast<double>() -
                             subspace_.mean.segment(begin, depth).transpose();
      energies[at].total += v.row(i).head(depth).squaredNorm();
    }
    add_exact_products(v.data(), v.cols(), n, subspace_.components.data() + begin, d, k, depth,
                       z.data());
  }
  for (Index i = 0; i < n; ++i) {
    Energies& e = energies[static_cast<std::size_t>(i)];
    e.residual = e.total - z.row(i).squaredNorm();
    e.mahalanobis = (z.row(i).array().square() / subspace_.variances.transpose().array()).sum();
    if (e.residual < kLeastShare * e.total) {
      e.residual = (rows.row(which[static_cast<std::size_t>(i)]).template cast<double>() -
                    subspace_.mean.transpose() - z.row(i) * subspace_.components)
                       .squaredNorm();
    }
  }
  return energies;
}

namespace {

// Whether float32 products keep the promise. False for NaN and infinity too.
bool certain(const Scorer& scorer, ScoreType type, const Energies& e) {
  return e.total >= kLeastEnergy && e.total <= kMostEnergy &&
         scorer.error(type, e) <= kTolerance * std::abs(scorer.value(type, e));
}

template <typename Scalar>
bool finite(const MatrixView<Scalar>& rows, Index row) {
  return rows.row(row).allFinite();
}

}  // namespace

template <typename Scalar>
Matrix<float> score(const MatrixView<Scalar>& rows, const Scorer& scorer,
                    const std::vector<ScoreType>& types, int n_threads) {
  const Index n = rows.rows();
  const auto n_types = static_cast<Index>(types.size());
  Matrix<float> result(n_types, n);
  const Index n_tiles = (n + kTileRows - 1) / kTileRows;
  std::vector<std::vector<Index>> uncertain(static_cast<std::size_t>(n_tiles));
  const auto make_tile = [n] { return Scorer::Tile(n); };
  parallel_for(n_tiles, n_threads, make_tile, [&](Index task, Scorer::Tile& tile) {
    const Index first = task * kTileRows;
    const Index count = std::min(kTileRows, n - first);
    scorer.measure(rows, first, count, tile);
    for (Index i = 0; i < count; ++i) {
      const Energies& e = tile.energies[static_cast<std::size_t>(i)];
      bool again = false;
      for (Index t = 0; t < n_types; ++t) {
        const ScoreType type = types[static_cast<std::size_t>(t)];
        const bool sure = certain(scorer, type, e);
        result(t, first + i) = sure ? to_float(scorer.value(type, e)) : kUncertain;
        again = again || !sure;
      }
      if (!again) continue;
      if (finite(rows, first + i)) {
        uncertain[static_cast<std::size_t>(task)].push_back(first + i);
      } else {
        result.col(first + i).setConstant(std::numeric_limits<float>::quiet_NaN());
      }
    }
  });

  std::vector<Index> all;
  for (const std::vector<Index>& some : uncertain) all.insert(all.end(), some.begin(), some.end());
  const auto n_uncertain = static_cast<Index>(all.size());
  parallel_blocks(n_uncertain, kExactRows, n_threads, [&](Index first, Index count) {
    const std::vector<Index> which(all.begin() + first, all.begin() + first + count);
    const std::vector<Energies> exact = scorer.measure_exactly(rows, which);
    for (std::size_t i = 0; i < which.size(); ++i) {
      for (Index t = 0; t < n_types; ++t) {
        float& to = result(t, which[i]);
        if (to == kUncertain) {
          to = to_float(scorer.value(types[static_cast<std::size_t>(t)], exact[i]));
        }
      }
    }
  });
  return result;
}

template <typename Scalar>
NearestClasses score_nearest(const MatrixView<Scalar>& rows,
                             const std::vector<const Scorer*>& scorers,
                             const std::vector<ScoreType>& types, int n_threads) {
  const Index n = rows.rows();
  const auto n_types = static_cast<Index>(types.size());
  NearestClasses result{Matrix<float>(n_types, n), Matrix<int>::Constant(n_types, n, -1)};
  const auto make_tile = [n] { return Scorer::Tile(n); };
  const Index n_tiles = (n + kTileRows - 1) / kTileRows;
  parallel_for(n_tiles, n_threads, make_tile, [&](Index task, Scorer::Tile& tile) {
    const Index first = task * kTileRows;
    const Index count = std::min(kTileRows, n - first);
    Matrix<double> least =
        Matrix<double>::Constant(n_types, count, std::numeric_limits<double>::infinity());
    for (Index i = 0; i < count; ++i) {
      if (!finite(rows, first + i)) {
        least.col(i).setConstant(std::numeric_limits<double>::quiet_NaN());
      }
    }
    for (std::size_t c = 0; c < scorers.size(); ++c) {
      const Scorer& scorer = *scorers[c];
      const auto keep = [&](Index t, Index i, double value) {
        if (value < least(t, i)) {  // never for NaN
          least(t, i) = value;
          result.classes(t, first + i) = static_cast<int>(c);
        }
      };
      scorer.measure(rows, first, count, tile);
      // Uncertain scores are computed again only where they might be the least.
      std::vector<Index> again;
      for (Index i = 0; i < count; ++i) {
        const Energies& e = tile.energies[static_cast<std::size_t>(i)];
        bool needed = false;
        for (Index t = 0; t < n_types; ++t) {
          const ScoreType type = types[static_cast<std::size_t>(t)];
          const double value = scorer.value(type, e);
          if (certain(scorer, type, e)) {
            keep(t, i, value);
          } else {
            needed = needed || !(value - scorer.error(type, e) > least(t, i));
          }
        }
        if (needed && !std::isnan(least(0, i))) again.push_back(first + i);
      }
      const std::vector<Energies> exact = scorer.measure_exactly(rows, again);
      for (std::size_t j = 0; j < again.size(); ++j) {
        const Index i = again[j] - first;
        for (Index t = 0; t < n_types; ++t) {
          const ScoreType type = types[static_cast<std::size_t>(t)];
          if (!certain(scorer, type, tile.energies[static_cast<std::size_t>(i)])) {
            keep(t, i, scorer.value(type, exact[j]));
          }
        }
      }
    }
    for (Index t = 0; t < n_types; ++t) {
      for (Index i = 0; i < count; ++i) result.scores(t, first + i) = to_float(least(t, i));
    }
  });
  return result;
}

template Matrix<float> score(const MatrixView<float>&, const Scorer&, const std::vector<ScoreType>&,
                             int);
template Matrix<float> score(const MatrixView<double>&, const Scorer&,
                             const std::vector<ScoreType>&, int);
template NearestClasses score_nearest(const MatrixView<float>&, const std::vector<const Scorer*>&,
                                      const std::vector<ScoreType>&, int);
template NearestClasses score_nearest(const MatrixView<double>&, const std::vector<const Scorer*>&,
                                      const std::vector<ScoreType>&, int);

}  // namespace pydfm
