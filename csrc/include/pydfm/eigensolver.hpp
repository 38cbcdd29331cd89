// Eigenpairs of symmetric matrices.
#pragma once

#include <stdexcept>

#include "pydfm/matrix.hpp"

namespace pydfm {

struct EigensolverError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Eigenpairs {
  Vector<double> values;   // (k,)    descending
  Matrix<double> vectors;  // (k, n)  row i, of length one, belongs to values[i]
};

/// All eigenpairs of the symmetric matrix `a` (n, n), whose lower triangle is read.
/// Throws EigensolverError where the iteration does not converge.
Eigenpairs eigh(const MatrixView<double>& a, int n_threads);

}  // namespace pydfm
