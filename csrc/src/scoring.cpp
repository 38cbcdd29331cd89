#include "pydfm/scoring.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "pydfm/parallel.hpp"

namespace pydfm {

namespace {

constexpr double kLog2Pi = 1.8378770664093454836;

// Rows to a tile. Tiles are always full (padded with zeros): the shape of a product must not
// depend on how many rows the caller has, or last bits would.
constexpr Index kTile = 64;
constexpr Index kExactTile = 16;

// Error of a float32 product z_i relative to |v|: rounding of v and W, and of sums whose partial
// results are themselves rounded. Twice the largest error seen over spectra and d up to 65,536.
constexpr double kProductError = 2.5e-7;
// Half of what is promised, the other half being left to rounding elsewhere.
constexpr double kTolerance = 5e-5;

// What the scores of a row are made of.
struct Energies {
  double total;        // |v|^2
  double residual;     // |v|^2 - |z|^2
  double mahalanobis;  // sum z_i^2 / variance_i
};

// The scores as functions of the energies, with the constants of one subspace.
class Scores {
 public:
  explicit Scores(const SubspaceView& subspace)
      : inverse_sum_(subspace.variances.cwiseInverse().sum()),
        precision_(1.0 / subspace.noise_variance) {
    const double k = static_cast<double>(subspace.components.rows());
    const double rest = static_cast<double>(subspace.components.cols()) - k;
    nll_constant_ = 0.5 * (subspace.variances.array().log().sum() + k * kLog2Pi);
    if (rest > 0) noise_constant_ = 0.5 * rest * (std::log(subspace.noise_variance) + kLog2Pi);
    if (!(rest > 0)) precision_ = 0;
  }

  double value(ScoreType type, const Energies& e) const {
    switch (type) {
      case ScoreType::kFre:
        return e.residual;
      case ScoreType::kMahalanobis:
        return e.mahalanobis;
      case ScoreType::kNll:
        return 0.5 * e.mahalanobis + nll_constant_;
      case ScoreType::kPpca:
        return 0.5 * (e.mahalanobis + e.residual * precision_) + nll_constant_ + noise_constant_;
    }
    throw std::invalid_argument("unknown score type");
  }

  // A bound on what float32 products may have changed in `value`: with |dz_i| <= g |v|,
  //   |d sum z_i^2|        <= 2 g |v| |z| + k g^2 |v|^2                <~ 2 g |v|^2
  //   |d sum z_i^2 / l_i|  <= 2 g |v| sqrt(m sum 1/l_i) + g^2 |v|^2 sum 1/l_i   (Cauchy-Schwarz)
  double error(ScoreType type, const Energies& e) const {
    const double residual = 2 * kProductError * e.total;
    const double spread = kProductError * kProductError * e.total * inverse_sum_;
    const double mahalanobis = 2 * std::sqrt(spread * e.mahalanobis) + spread;
    switch (type) {
      case ScoreType::kFre:
        return residual;
      case ScoreType::kMahalanobis:
        return mahalanobis;
      case ScoreType::kNll:
        return 0.5 * mahalanobis;
      case ScoreType::kPpca:
        return 0.5 * (mahalanobis + residual * precision_);
    }
    throw std::invalid_argument("unknown score type");
  }

  // Whether float32 products keep the promise for this row. False for NaN and infinity too.
  bool certain(const std::vector<ScoreType>& types, const Energies& e) const {
    return std::all_of(types.begin(), types.end(), [&](ScoreType type) {
      return error(type, e) <= kTolerance * std::abs(value(type, e));
    });
  }

 private:
  double inverse_sum_;
  double precision_;
  double nll_constant_ = 0;
  double noise_constant_ = 0;
};

float to_float(double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kLargest, kLargest));
}

}  // namespace

template <typename Scalar>
Matrix<float> score(const MatrixView<Scalar>& rows, const SubspaceView& subspace,
                    const std::vector<ScoreType>& types, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  const Index k = subspace.components.rows();
  const Index n_types = static_cast<Index>(types.size());
  const Scores scores(subspace);
  const Matrix<float> components = subspace.components.cast<float>();
  const Eigen::RowVectorXd precisions = subspace.variances.cwiseInverse().transpose();
  Matrix<float> result(n_types, n);

  const auto store = [&](Index row, const Energies& e) {
    for (Index t = 0; t < n_types; ++t) {
      result(t, row) = to_float(scores.value(types[static_cast<std::size_t>(t)], e));
    }
  };

  // Rows `first` to `first + count` whose float32 scores are uncertain, again in float64.
  const auto score_exactly = [&](const std::vector<Index>& uncertain) {
    Matrix<double> v = Matrix<double>::Zero(kExactTile, d);
    for (std::size_t begin = 0; begin < uncertain.size(); begin += kExactTile) {
      const std::size_t count = std::min<std::size_t>(kExactTile, uncertain.size() - begin);
      for (std::size_t i = 0; i < count; ++i) {
        v.row(static_cast<Index>(i)) =
            rows.row(uncertain[begin + i]).template cast<double>() - subspace.mean.transpose();
      }
      const Matrix<double> z = v * subspace.components.transpose();
      const Matrix<double> residual = v - z * subspace.components;
      for (std::size_t i = 0; i < count; ++i) {
        const Index at = static_cast<Index>(i);
        store(uncertain[begin + i], {v.row(at).squaredNorm(), residual.row(at).squaredNorm(),
                                     (z.row(at).array().square() * precisions.array()).sum()});
      }
    }
  };

  parallel_for((n + kTile - 1) / kTile, n_threads, [&](Index task) {
    const Index first = task * kTile;
    const Index count = std::min(kTile, n - first);
    Matrix<float> v = Matrix<float>::Zero(kTile, d);
    for (Index i = 0; i < count; ++i) {
      v.row(i) = (rows.row(first + i).template cast<double>() - subspace.mean.transpose())
                     .template cast<float>();
    }
    Matrix<float> z(kTile, k);
    z.noalias() = v * components.transpose();

    std::vector<Index> uncertain;
    for (Index i = 0; i < count; ++i) {
      const Eigen::RowVectorXd z2 = z.row(i).template cast<double>().cwiseAbs2();
      const double total = v.row(i).template cast<double>().squaredNorm();
      const Energies e{total, total - z2.sum(), z2.dot(precisions)};
      if (scores.certain(types, e)) {
        store(first + i, e);
      } else if (rows.row(first + i).allFinite()) {
        uncertain.push_back(first + i);
      } else {
        result.col(first + i).setConstant(std::numeric_limits<float>::quiet_NaN());
      }
    }
    score_exactly(uncertain);
  });
  return result;
}

template Matrix<float> score(const MatrixView<float>&, const SubspaceView&,
                             const std::vector<ScoreType>&, int);
template Matrix<float> score(const MatrixView<double>&, const SubspaceView&,
                             const std::vector<ScoreType>&, int);

}  // namespace pydfm
