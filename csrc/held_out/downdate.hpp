// Sums over the eigenpairs of a diagonal matrix less one of low rank, without the eigenpairs.
#pragma once

#include <optional>

#include "kernels/matrix.hpp"

namespace pydfm {

/// Sums over the eigenpairs (t_j, u_j), t_j descending, for a cut after the first k of them.
struct SpectralSums {
  Index k;
  double logs;               // sum_{j <= k} ln t_j
  double rest;               // sum_{j > k} t_j, of which those up to `zero` count as zero
  Vector<double> residual;   // (s,)  sum_{j > k}  (u_j'y)^2
  Vector<double> precision;  // (s,)  sum_{j <= k} (u_j'y)^2 / t_j
  Matrix<double> residuals;  // (s, r)  y - sum_{j <= k} u_j u_j'y; empty unless asked for
};

/// diag(eigenvalues) - U U', of which no eigenvalue is negative but for rounding, and the small
/// matrix I - F(x), F(x) = U' (diag(eigenvalues) - x)^-1 U, that knows all about it:
///
///   as many t_j are above x as eigenvalues are, plus positive ones of I - F(x), minus m
///   (Sylvester) prod (t_j - x) = det(I - F(x)) prod (eigenvalue_j - x) y'(diag(eigenvalues) - U U'
///   - x)^-1 y = g + b'(I - F(x))^-1 b                        (Woodbury)
///
/// with g = y'(diag(eigenvalues) - x)^-1 y and b = U'(diag(eigenvalues) - x)^-1 y.
class Downdate {
 public:
  /// `update` is U' (m, r) for positive `eigenvalues` (r,), descending. Both must outlive it.
  Downdate(const VectorView<double>& eigenvalues, const Matrix<double>& update);

  /// How many t_j are above x > 0.
  Index count(double x) const;

  /// t_1 to ten digits, where it is above `zero`.
  double largest(double zero) const;

  /// The sums for the rows y of `rows` (s, r) and at most k components: none with t_j <= `zero`,
  /// and `most` at most. They are means over a circle between t_{k+1} and t_k, which is found by
  /// counting; see `leave_one_out`, which has one circle for all rows. Nothing where the two are
  /// too close, or a sum so small that rounding of the means would show: each is within 1e-9.
  std::optional<SpectralSums> sums(const Matrix<double>& rows, Index k, Index most, double zero,
                                   bool residuals) const;

 private:
  struct Gap {
    double low, high;
  };
  std::optional<Gap> gap(Index k, double zero, bool rest_is_zero) const;

  const VectorView<double> eigenvalues_;
  const Matrix<double>& update_;
  Matrix<double> squares_;  // (m (m + 1) / 2, r)  products of two rows of U'
};

}  // namespace pydfm
