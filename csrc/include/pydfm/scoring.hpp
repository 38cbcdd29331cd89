// How far rows are from one class: every score in one pass over the rows.
#pragma once

#include <vector>

#include "pydfm/matrix.hpp"

namespace pydfm {

/// One class: a Gaussian in its principal subspace, and isotropic noise around the subspace.
struct SubspaceView {
  VectorView<double> mean;        // (d,)
  MatrixView<double> components;  // (k, d)  orthonormal rows W'
  VectorView<double> variances;   // (k,)    along the components, all > 0
  double noise_variance;          //         per feature outside the subspace; read for ppca only
};

enum class ScoreType { kFre, kMahalanobis, kNll, kPpca };

/// Scores (n_types, n) of `rows` (n, d), larger = farther. With v = x - mean and z = W'v:
///
///   fre          = |v|^2 - |z|^2
///   mahalanobis  = sum_i z_i^2 / variance_i
///   nll          = 1/2 (mahalanobis + sum_i ln variance_i + k ln 2 pi)
///   ppca         = nll + 1/2 (fre / noise + (d - k) ln noise + (d - k) ln 2 pi)
///
/// Products are float32; a row whose score would lose digits that way (see the bound in
/// scoring.cpp) is computed again in float64 from its explicit residual, so that every score is
/// within 1e-4 relative of float64's. A row with NaN or infinity scores NaN; a score beyond
/// float32 is its largest finite number. A row's score depends neither on the other rows nor on
/// `n_threads`. Extra memory: a tile of rows per thread.
template <typename Scalar>
Matrix<float> score(const MatrixView<Scalar>& rows, const SubspaceView& subspace,
                    const std::vector<ScoreType>& types, int n_threads);

}  // namespace pydfm
