// Symmetric matrices to tridiagonal form.
#pragma once

#include "pydfm/matrix.hpp"
#include "pydfm/reflectors.hpp"

namespace pydfm {

/// A = Q T Q' with T tridiagonal and Q a product of n - 1 Householder reflectors.
struct Tridiagonal {
  Index n;
  Vector<double> diagonal;      // (n,)
  Vector<double> off_diagonal;  // (n - 1,)
  Reflectors reflectors;        // n - 1 of them
};

/// Reduces scale * `a` (n, n), of which the lower triangle is read. 4/3 n^3 multiplications and
/// additions: half in products of panels, half in one symmetric matrix-vector product per column,
/// which reads one triangle and is bound by memory (Dongarra, Sorensen and Hammarling 1989).
Tridiagonal tridiagonalise(const MatrixView<double>& a, double scale, int n_threads);

}  // namespace pydfm
