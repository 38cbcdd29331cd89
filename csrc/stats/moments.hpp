// Count, mean and scatter of rows: all that a Gaussian or a PCA needs to know of its data.
#pragma once

#include "kernels/matrix.hpp"

namespace pydfm {

/// First and second moments of `count` rows of d features.
struct Moments {
  Index count = 0;
  Vector<double> mean;     // (d,)    sum of x / count
  Matrix<double> scatter;  // (d, d)  sum of (x - mean)(x - mean)', both triangles
};

/// Moments that lie elsewhere.
struct MomentsView {
  Index count;
  VectorView<double> mean;
  MatrixView<double> scatter;

  MomentsView(Index n, const VectorView<double>& m, const MatrixView<double>& s)
      : count(n), mean(m), scatter(s) {}
  MomentsView(const Moments& moments)  // what a Moments is taken for
      : count(moments.count),
        mean(moments.mean.data(), moments.mean.size()),
        scatter(moments.scatter.data(), moments.scatter.rows(), moments.scatter.cols()) {}

  Moments copy() const { return {count, mean, scatter}; }
};

/// Mean and matrix of inner products of centred rows (the other route to the same PCA).
struct Gram {
  Vector<double> mean;  // (d,)
  Matrix<double> gram;  // (n, n)  (x_i - mean)'(x_j - mean), both triangles
};

/// Moments of `rows` (n, d), n >= 1, about the mean c of m of them, evenly spaced:
///
///   scatter = sum (x - c)(x - c)' - n (mean - c)(mean - c)',   m = max(128, n / 64), at most n
///
/// The m rows and the others have means that scatter, so that the largest eigenvalue of the scatter
/// is at least m n / (n - m) |mean - c|^2: what is subtracted is below 64 times it, whatever the
/// rows are, and costs less than two digits.
///
/// Cost n d^2 / 2 multiplications in float64; extra memory 64 MiB or one more scatter matrix,
/// whichever is more, and for each thread a tile of 2 MiB and the rows that meet in it.
/// NaN or infinity in a row shows as a non-finite mean.
Moments moments(const RowsView& rows, int n_threads);

/// Moments of the union of two disjoint sets of rows (Chan, Golub and LeVeque 1979):
///
///   scatter = scatter_a + scatter_b + n_a n_b / (n_a + n_b) (mean_b - mean_a)(mean_b - mean_a)'
Moments merge(const MomentsView& a, const MomentsView& b);

/// Moments of the rows of `a` without those of `b`, which must be among them: merge undone,
///
///   mean    = mean_a + n_b / n (mean_a - mean_b),                n = n_a - n_b
///   scatter = scatter_a - scatter_b - n n_b / n_a (mean_b - mean)(mean_b - mean)'
///
/// Errors are those of a's scatter, eps trace(scatter_a): of a scatter that shrinks to a share r of
/// a's trace, log10(1 / r) digits are lost. Throws std::invalid_argument where b has more rows than
/// a, or a variance of the difference is negative beyond rounding, so that b's rows cannot be a's.
/// Where no row is left, mean and scatter are zero.
Moments subtract(const MomentsView& a, const MomentsView& b);

/// Mean of `rows` (n, d) and Gram matrix of the centred rows, in float64: n^2 d / 2
/// multiplications, extra memory as for `moments`.
Gram gram(const RowsView& rows, int n_threads);

/// Principal components (k, d) of `rows` (n, d) from eigenpairs of their centred Gram matrix:
///
///   w_i = (X - 1 mean')' u_i / sqrt(value_i),   u_i row i of `vectors` (k, n), value_i > 0,
///
/// which is how the singular vectors of the centred rows on one side give those on the other.
Matrix<double> components_from_gram(const RowsView& rows, const VectorView<double>& mean,
                                    const VectorView<double>& values,
                                    const MatrixView<double>& vectors, int n_threads);

}  // namespace pydfm
