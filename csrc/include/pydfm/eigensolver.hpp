// Eigenpairs of symmetric matrices.
#pragma once

#include <limits>
#include <stdexcept>

#include "pydfm/matrix.hpp"

namespace pydfm {

struct EigensolverError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

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

/// How the matrix becomes tridiagonal: at once, where half of the work is bound by memory; or by
/// way of a band, where none is, but each vector has a longer way back.
enum class Reduction { kDirect, kByBand };

/// The faster one, as measured: by way of a band where the matrix is too large for the cache and
/// few vectors are wanted (a share counts as few).
Reduction reduction_of(Index n, const Wanted& wanted);

/// All eigenvalues of the symmetric matrix `a` (n, n), whose lower triangle is read, and the
/// eigenvectors of the leading ones that are wanted.
///
/// Householder tridiagonalisation, divide and conquer, and back: 4/3 n^3 + c n^3 + 2 n^2 k
/// multiplications and additions for k vectors, 0 < c < 4/3; 3 n^2 k more by way of a band.
/// Eigenvalues and residuals are within some n eps of |a|; vectors are orthogonal to n eps. Memory:
/// some 4 n^2 numbers.
/// Throws EigensolverError where `a` is not finite, or the iteration on a small block (the only
/// one that can fail) does not converge.
Eigenpairs eigh(const MatrixView<double>& a, const Wanted& wanted, int n_threads);
Eigenpairs eigh(const MatrixView<double>& a, const Wanted& wanted, int n_threads,
                Reduction reduction);

}  // namespace pydfm
