// Eigenpairs of symmetric matrices.
#pragma once

#include <limits>

#include "kernels/matrix.hpp"
#include "runtime/errors.hpp"

namespace pydfm {

struct Eigenpairs {
  Vector<double> values;   // (n,)    descending
  Matrix<double> vectors;  // (k, n)  row i, of length one, belongs to values[i]
};

/// Which eigenvectors to compute: those of at most `count` leading eigenvalues, and no more of them
/// than it takes to exceed `share` of the sum of the positive eigenvalues.
struct Wanted {
  Index count = std::numeric_limits<Index>::max();
  double share = 1;

  /// How many of the eigenvalues `values` (n,), descending. Where the sum meets `share` but for
  /// rounding, one more.
  Index of(const Vector<double>& values) const;
};

/// All eigenvalues of the symmetric matrix `a` (n, n), whose lower triangle is read, and the
/// eigenvectors of the leading ones that are wanted.
///
/// Householder tridiagonalisation, divide and conquer, and back: 4/3 n^3 + c n^3 + 2 n^2 k
/// multiplications and additions for k vectors, 0 < c < 4/3.
/// Eigenvalues and residuals are within some n eps of |a|; vectors are orthogonal to n eps. Memory:
/// some 4 n^2 numbers.
/// Throws EigensolverError where `a` is not finite, or the iteration on a small block (the only
/// one that can fail) does not converge.
Eigenpairs eigh(const MatrixView<double>& a, const Wanted& wanted, int n_threads);

}  // namespace pydfm
