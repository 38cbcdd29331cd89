// Symmetric matrices to tridiagonal form, and eigenvectors back.
#pragma once

#include "pydfm/matrix.hpp"

namespace pydfm {

/// A = Q T Q' with T tridiagonal and Q a product of n - 1 Householder reflectors.
struct Tridiagonal {
  Index n;
  Vector<double> diagonal;      // (n,)
  Vector<double> off_diagonal;  // (n - 1,)
  Vector<double> factors;       // (n - 1,)
  /// Column j < n - 1 holds v_j, of which Q = H_0 H_1 ..., H_j = I - factors_j v_j v_j'. Zero where
  /// it is padded beyond n.
  Eigen::MatrixXd reflectors;
};

/// Reduces scale * `a` (n, n), of which the lower triangle is read. 4/3 n^3 multiplications and
/// additions: half in products of panels, half in one symmetric matrix-vector product per column,
/// which reads one triangle and is bound by memory (Dongarra, Sorensen and Hammarling 1989).
Tridiagonal tridiagonalise(const MatrixView<double>& a, double scale, int n_threads);

/// rows = rows Q', that is: each row z of `rows` (k, n) becomes Q z.
void back_transform(const Tridiagonal& t, Matrix<double>& rows, int n_threads);

}  // namespace pydfm
