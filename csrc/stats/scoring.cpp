#include "stats/scoring.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

// Half of what is promised, the other half being left to rounding elsewhere.
constexpr double kTolerance = 5e-5;
// Below this share of |v|^2 a residual is computed by itself, not by subtraction in float64.
constexpr double kLeastShare = 1e-8;
// Residuals of the second pass up to this, times the square root of k, are rounding, relative to
// the length of what is projected.
constexpr double kRounding = 8 * std::numeric_limits<double>::epsilon();
// Rows to a task of the second, exact pass.
constexpr Index kExactRows = 48;
// Features that are centred at a time there.
constexpr Index kExactSlice = 512;
// Where the second pass has yet to write: no score is that, since to_score ends before infinity.
constexpr float kUncertain = std::numeric_limits<float>::infinity();

}  // namespace

ScoreType score_type(const std::string& name) {
  if (name == "fre") return ScoreType::kFre;
  if (name == "mahalanobis") return ScoreType::kMahalanobis;
  if (name == "nll") return ScoreType::kNll;
  if (name == "ppca") return ScoreType::kPpca;
  throw std::invalid_argument("score_types has '" + name +
                              "'; it may have 'fre', 'mahalanobis', 'nll' and 'ppca'");
}

float to_score(double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kLargest, kLargest));
}

Scorer::Scorer(const SubspaceView& subspace)
    : subspace_(subspace),
      projection_(subspace.mean, subspace.components),
      precisions_(Vector<double>::Zero(projection_.width())),
      precision_sum_(subspace.variances.cwiseInverse().sum()),
      product_error_(product_error(features())) {
  const auto k = subspace.components.rows();
  precisions_.head(k) = subspace.variances.cwiseInverse();
  nll_constant_ = 0.5 * (subspace.variances.array().log().sum() + static_cast<double>(k) * kLog2Pi);
  const double rest = static_cast<double>(subspace.components.cols() - k);
  if (rest > 0) {
    noise_precision_ = 1 / subspace.noise_variance;
    noise_constant_ = 0.5 * rest * (std::log(subspace.noise_variance) + kLog2Pi);
  }
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

bool Scorer::certain(ScoreType type, const Energies& e) const {
  return e.total >= kLeastEnergy && e.total <= kMostEnergy &&
         error(type, e) <= kTolerance * std::abs(value(type, e));
}

void Scorer::measure(const RowsView& rows, const Index* which, Index count, Tile& tile) const {
  projection_.project(rows, which, count, tile);
  const Index width = projection_.width();
  for (Index i = 0; i < count; ++i) {
    Energies& e = tile.energies[static_cast<std::size_t>(i)];
    const auto squares = tile.projected.segment(i * width, width).array().square();
    e.total = tile.totals[i];
    e.residual = e.total - squares.sum();
    e.mahalanobis = (squares * precisions_.array()).sum();
  }
}

std::vector<Energies> Scorer::measure_exactly(const RowsView& rows,
                                              const std::vector<Index>& which) const {
  const auto n = static_cast<Index>(which.size());
  const Index d = features();
  const Index k = subspace_.components.rows();
  std::vector<Energies> energies(which.size());
  Matrix<double> v(n, kExactSlice + 8);
  Matrix<double> z = Matrix<double>::Zero(n, k);
  for (Index begin = 0; begin < d; begin += kExactSlice) {
    poll();
    const Index depth = std::min(kExactSlice, d - begin);
    for (Index i = 0; i < n; ++i) {
      const std::size_t at = static_cast<std::size_t>(i);
      centre_row(rows, which[at], begin, depth, subspace_.mean.data() + begin, v.row(i).data());
      energies[at].total += v.row(i).head(depth).squaredNorm();
    }
    add_exact_products(v.data(), v.cols(), n, subspace_.components.data() + begin, d, k, depth,
                       z.data());
  }
  for (Index i = 0; i < n; ++i) {
    Energies& e = energies[static_cast<std::size_t>(i)];
    if (!std::isfinite(e.total)) {  // as far as can be: a difference of infinities is no number
      e.total = e.residual = e.mahalanobis = std::numeric_limits<double>::max();
      continue;
    }
    e.residual = e.total - z.row(i).squaredNorm();
    e.mahalanobis = (z.row(i).array().square() / subspace_.variances.transpose().array()).sum();
    if (e.residual < kLeastShare * e.total) {
      poll();
      Vector<double> rest(d);
      centre_row(rows, which[static_cast<std::size_t>(i)], 0, d, subspace_.mean.data(),
                 rest.data());
      e.residual = (rest.transpose() - z.row(i) * subspace_.components).squaredNorm();
      // What rounding leaves is no distance: normal rows of full rank would all be above zero.
      if (e.residual < static_cast<double>(k) * kRounding * kRounding * e.total) e.residual = 0;
    }
  }
  return energies;
}

Matrix<float> score(const RowsView& rows, const Scorer& scorer, const std::vector<ScoreType>& types,
                    int n_threads) {
  const Index n = rows.rows();
  const auto n_types = static_cast<Index>(types.size());
  Matrix<float> result(n_types, n);
  // Tiles of whole strips, about as high as each other, as many for every thread.
  const auto parts = [](Index of, Index size) { return (of + size - 1) / size; };
  const Index shares = parts(parts(n, kTileRows), n_threads) * n_threads;
  const Index height = parts(parts(n, std::max<Index>(shares, 1)), kStripRows) * kStripRows;
  const Index n_tiles = parts(n, std::max<Index>(height, 1));
  std::vector<std::vector<Index>> uncertain(static_cast<std::size_t>(n_tiles));
  const auto make_tile = [n] { return Scorer::Tile(n); };
  parallel_for(n_tiles, n_threads, make_tile, [&](Index task, Scorer::Tile& tile) {
    const Index first = task * height;
    const Index count = std::min(height, n - first);
    std::array<Index, kTileRows> which;
    std::iota(which.begin(), which.begin() + count, first);
    scorer.measure(rows, which.data(), count, tile);
    for (Index i = 0; i < count; ++i) {
      const Energies& e = tile.energies[static_cast<std::size_t>(i)];
      bool again = false;
      for (Index t = 0; t < n_types; ++t) {
        const ScoreType type = types[static_cast<std::size_t>(t)];
        const bool sure = scorer.certain(type, e);
        result(t, first + i) = sure ? to_score(scorer.value(type, e)) : kUncertain;
        again = again || !sure;
      }
      if (!again) continue;
      if (is_finite(rows, first + i)) {
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
          to = to_score(scorer.value(types[static_cast<std::size_t>(t)], exact[i]));
        }
      }
    }
  });
  return result;
}

}  // namespace pydfm
