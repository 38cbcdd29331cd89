// Count, mean and scatter of rows: all that a Gaussian or a PCA needs to know of its data.
#pragma once

#include "pydfm/matrix.hpp"

namespace pydfm {

/// First and second moments of `count` rows of d features.
struct Moments {
  Index count = 0;
  Vector<double> mean;     // (d,)    sum of x / count
  Matrix<double> scatter;  // (d, d)  sum of (x - mean)(x - mean)', both triangles
};

/// Mean and matrix of inner products of centred rows (the other route to the same PCA).
struct Gram {
  Vector<double> mean;  // (d,)
  Matrix<double> gram;  // (n, n)  (x_i - mean)'(x_j - mean), both triangles
};

/// Moments of `rows` (n, d), n >= 1, in one pass: rows are shifted by the mean of the first block
/// (so that a large common offset costs no digits) and their products added up in float64:
///
///   scatter = sum (x - s)(x - s)' - n (mean - s)(mean - s)'
///
/// Cost n d^2 multiplications; extra memory a block of rows in float64, at most about 16 MiB.
/// NaN or infinity in a row shows as a non-finite mean.
template <typename Scalar>
Moments moments(const MatrixView<Scalar>& rows, int n_threads);

/// Moments of the union of two disjoint sets of rows (Chan, Golub and LeVeque 1979):
///
///   scatter = scatter_a + scatter_b + n_a n_b / (n_a + n_b) (mean_b - mean_a)(mean_b - mean_a)'
Moments merge(const Moments& a, const Moments& b);

/// Mean of `rows` (n, d) and Gram matrix of the centred rows; n^2 d / 2 multiplications in float64.
template <typename Scalar>
Gram gram(const MatrixView<Scalar>& rows, int n_threads);

}  // namespace pydfm
