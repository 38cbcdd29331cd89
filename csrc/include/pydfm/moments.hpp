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

/// Moments whose products were float32, and how far that took the scatter.
struct SingleMoments {
  Moments moments;
  double error;  // estimate of the spectral norm of the scatter's error
};

/// Mean and matrix of inner products of centred rows (the other route to the same PCA).
struct Gram {
  Vector<double> mean;  // (d,)
  Matrix<double> gram;  // (n, n)  (x_i - mean)'(x_j - mean), both triangles
};

/// Moments of `rows` (n, d), n >= 1, in one pass. Rows are taken in blocks of m = 128; each is
/// centred about its own mean, so that neither an offset nor a drift of the mean costs digits, and
/// blocks are joined as by `merge`:
///
///   scatter = sum_b sum_{x in b} (x - mean_b)(x - mean_b)' + the scatter of the means mean_b
///
/// Cost n d^2 / 2 multiplications in float64; extra memory 64 MiB or one more scatter matrix,
/// whichever is more, and a block of rows per thread.
/// NaN or infinity in a row shows as a non-finite mean.
template <typename Scalar>
Moments moments(const MatrixView<Scalar>& rows, int n_threads);

/// The same, but the products within a block are float32, at twice the speed: all else, means, sums
/// over blocks and the scatter of the means, is float64. With u = 2^-24 an entry's error is
///
///   |E_ij| <= (m + 2) u sum_b sqrt(S_b,ii S_b,jj) <= (m + 2) u sqrt(S_ii S_jj)   (worst case)
///   |E_ij| ~  (m / 4) u sqrt(S_ii S_jj) / sqrt(n)         (errors of blocks being independent)
///
/// the second of which is what one finds, but not where blocks repeat each other. So it is
/// measured: the product of the scatter with a vector v of random signs is summed in float64 along
/// the way, from the unrounded rows. The mean square of (E v)_i is the squared norm of row i of E,
/// and the spectral norm of an E whose entries are independent is about twice its largest row;
/// `error` is 2 max_i |(E v)_i|, which was 1.8 to 3.4 times the spectral norm over spectra,
/// offsets, repeated rows, sparse rows and one large feature. Not finite where float32 cannot hold
/// the products.
SingleMoments single_moments(const MatrixView<float>& rows, int n_threads);

/// Moments of the union of two disjoint sets of rows (Chan, Golub and LeVeque 1979):
///
///   scatter = scatter_a + scatter_b + n_a n_b / (n_a + n_b) (mean_b - mean_a)(mean_b - mean_a)'
Moments merge(const Moments& a, const Moments& b);

/// Moments of the rows of `a` without those of `b`, which must be among them: merge undone,
///
///   mean    = mean_a + n_b / n (mean_a - mean_b),                n = n_a - n_b
///   scatter = scatter_a - scatter_b - n n_b / n_a (mean_b - mean)(mean_b - mean)'
///
/// Errors are those of a's scatter, eps trace(scatter_a): of a scatter that shrinks to a share r of
/// a's trace, log10(1 / r) digits are lost. Throws std::invalid_argument where b has more rows than
/// a, or a variance of the difference is negative beyond rounding, so that b's rows cannot be a's.
/// Where no row is left, mean and scatter are zero.
Moments subtract(const Moments& a, const Moments& b);

/// Mean of `rows` (n, d) and Gram matrix of the centred rows, in float64: n^2 d / 2
/// multiplications, extra memory as for `moments`.
template <typename Scalar>
Gram gram(const MatrixView<Scalar>& rows, int n_threads);

}  // namespace pydfm
