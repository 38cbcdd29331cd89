// Eigenpairs of symmetric tridiagonal matrices.
#pragma once

#include "kernels/matrix.hpp"
#include "linalg/eigensolver.hpp"

namespace pydfm {

/// All eigenvalues, and the vectors of the leading ones, of the tridiagonal matrix with `diagonal`
/// (n,) and `off_diagonal` (n - 1,), whose entries should be of the order of one at most.
///
/// Cuppen's method (1981): the matrix is torn in two halves and a rank-one rest, the halves are
/// solved, and the rest is put back by the secular equation. Vectors are those of a nearby problem
/// whose eigenvalues are exactly the roots found (Gu and Eisenstat 1995), so that they are
/// orthogonal however close the eigenvalues. Backward error some eps |T|. At most 4/3 n^3
/// multiplications and additions, all in matrix products, three quarters of them for the last two
/// halves, of which only the `wanted` vectors are formed.
Eigenpairs divide_and_conquer(const Vector<double>& diagonal, const Vector<double>& off_diagonal,
                              const Wanted& wanted, int n_threads);

}  // namespace pydfm
