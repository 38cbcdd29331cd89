// What leaving out one row and leaving out groups of rows have in common.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/matrix.hpp"
#include "stats/scoring.hpp"

namespace pydfm {

/// A model that is fitted without some rows, as far as scores of rows are made of it.
struct HeldOutModel {
  Index n_components;     // k
  double log_variances;   // sum of the logarithms of the components' variances
  double noise_variance;  // read for ppca only
  Index n_features;       // d

  /// The score of a row with these energies. Where no variance is left, only fre is finite.
  double score(ScoreType type, double fre, double mahalanobis) const {
    if (type == ScoreType::kFre) return fre;
    if (n_components == 0) return std::numeric_limits<double>::infinity();
    if (type == ScoreType::kMahalanobis) return mahalanobis;
    const double nll =
        0.5 * (mahalanobis + log_variances + static_cast<double>(n_components) * kLog2Pi);
    const double rest = static_cast<double>(n_features - n_components);
    if (type == ScoreType::kNll || rest == 0) return nll;
    return nll + 0.5 * (fre / noise_variance + rest * (std::log(noise_variance) + kLog2Pi));
  }
};

/// Throws std::invalid_argument unless `eigenvalues` (r,) are those of a scatter above
/// `resolution`, descending, and there are `n_components` of them.
inline void check_spectrum(const VectorView<double>& eigenvalues, double resolution,
                           Index n_components) {
  const Index r = eigenvalues.size();
  const Index least = std::min<Index>(r, 1);
  if (n_components < least || n_components > r) {
    throw std::invalid_argument("n_components is " + std::to_string(n_components) +
                                "; with the eigenvalues given it must be from " +
                                std::to_string(least) + " to " + std::to_string(r));
  }
  if (!(resolution >= 0)) throw std::invalid_argument("resolution must not be negative");
  for (Index i = 0; i < r; ++i) {
    if (!(eigenvalues[i] > resolution && std::isfinite(eigenvalues[i]) &&
          (i == 0 || eigenvalues[i] <= eigenvalues[i - 1]))) {
      throw std::invalid_argument(
          "eigenvalues must be finite, in descending order, and larger than resolution");
    }
  }
}

}  // namespace pydfm
