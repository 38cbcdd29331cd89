// Symmetric matrices to tridiagonal form.
#pragma once

#include "kernels/matrix.hpp"

namespace pydfm {

/// Q = H_0 H_1 ... of Householder reflectors H_j = I - factors_j v_j v_j'.
struct Reflectors {
  Vector<double> factors;   // (n - 1,)
  Eigen::MatrixXd vectors;  // v_j, column j, is zero above row j + 1

  /// rows = rows Q', that is: each row z of `rows` (k, n) becomes Q z.
  void apply(Matrix<double>& rows, int n_threads) const;
};

/// A = Q T Q' with T tridiagonal and Q a product of n - 1 Householder reflectors.
struct Tridiagonal {
  Index n;
  Vector<double> diagonal;      // (n,)
  Vector<double> off_diagonal;  // (n - 1,)
  Reflectors reflectors;
};

/// Reduces scale * `a` (n, n), of which the lower triangle is read. 4/3 n^3 multiplications and
/// additions: half in products of panels, half in one symmetric matrix-vector product per column,
/// which reads one triangle and is bound by memory (Dongarra, Sorensen and Hammarling 1989).
Tridiagonal tridiagonalise(const MatrixView<double>& a, double scale, int n_threads);

}  // namespace pydfm
