// Scores of every training row under the model of all other rows, from one eigendecomposition.
#pragma once

#include <vector>

#include "kernels/matrix.hpp"
#include "stats/scoring.hpp"

namespace pydfm {

/// Rows of a class beside the spectrum of its scatter S, and what leaving one of them out does:
///
///   v = x - mean  becomes  rho v,   S  becomes  S - rho v v'
///
/// with rho = n / (n - 1) for a class of n rows. (So it is where S pools several classes, and n is
/// the number of rows of the row's own class.)
struct TrainingRows {
  MatrixView<double> coordinates;  // (n, r)  V'v, V the eigenvectors of S with value > resolution
  VectorView<double> eigenvalues;  // (r,)    those values, descending
  VectorView<double> rho;          // (n,)
  double resolution;               //         eigenvalues of S - rho v v' up to this are zero
};

/// What makes scores of the spectrum of n - 1 rows.
struct RemainingModel {
  Index n_components;         // k, at most r
  double degrees_of_freedom;  // scatter / covariance: n - 2, or n - 1 - classes
  Index n_variances;          // what the noise variance is a mean of, with those of the subspace:
                              // min(n - 1, d)
  Index n_features;           // d
};

/// Scores (n_types, n) of the rows, each under the model that is fitted without it. With eigenpairs
/// (t_j, u_j) of diag(eigenvalues) - rho z z', descending, z = V'v, and
///
///   w(t) = 1 - rho f(t),   f(t) = sum_i z_i^2 / (eigenvalue_i - t)      (w(t_j) = 0)
///   h(t) = f(t) / w(t) = sum_j (u_j'z)^2 / (t_j - t)                    (Sherman and Morrison)
///
/// the scores are made of four sums, each the mean of a function over a circle |tau| = m between
/// t_{k+1} and t_k:
///
///   sum_{j > k}  (u_j'z)^2               = -mean of tau h(tau)
///   sum_{j <= k} (u_j'z)^2 / t_j         =  mean of h(tau)
///   sum_{j <= k} ln(t_j / eigenvalue_j)  =  mean of ln w(tau)           (Jensen's formula)
///   sum_{j > k}  (eigenvalue_j - t_j)    =  mean of tau ln w(tau)
///
/// f at the few nodes of the circle is, for all rows, one product of matrices. t_{k+1} <=
/// eigenvalue_{k+1} <= t_k <= eigenvalue_k for every row (interlacing): the circle leaves
/// eigenvalue_{k+1} within. Where t_k is not clear of it, that root is solved for on its own, and
/// its share in the means, a known function of the root, replaced by what it should be. So are
/// the roots between eigenvalues around k that are too close to pass between. Sums so small that
/// rounding of the means would show are added up root by root.
///
/// Equal to fitting again but for rounding: relative 1e-8 where the spectrum left is
/// known that well (leaving out a row that alone makes up an eigenvalue costs the digits by which
/// what remains of it is smaller).
///
/// k counts at most the directions that have variance without the row: where k = r and the smallest
/// t_j is zero, the row is scored with k - 1. Where nothing is left (all other rows equal), fre is
/// the squared distance and the other scores are infinite.
///
/// Cost 2 n r m multiplications for m nodes (some 10 to 50 pairs), and 5 r divisions for each
/// root. Extra memory: a block of rows per thread. Results do not depend on `n_threads`.
Matrix<double> leave_one_out(const TrainingRows& rows, const RemainingModel& model,
                             const std::vector<ScoreType>& types, int n_threads);

/// Residuals (n, r) of the rows, each under the model without it, in the coordinates V:
///
///   rho (z - sum_{j <= k} u_j u_j'z) = -rho mean of tau (diag(eigenvalues) - tau)^-1 z / w(tau),
///
/// again a product of matrices. Their squared lengths are the fre; times V' they are the residual
/// vectors. Each is within rounding of |v|.
Matrix<double> leave_one_out_residuals(const TrainingRows& rows, Index n_components, int n_threads);

}  // namespace pydfm
