// Scores of rows under models that are fitted without a group of rows, from one eigendecomposition.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/matrix.hpp"
#include "stats/scoring.hpp"

namespace pydfm {

/// Rows of G groups, one after another.
struct RowGroups {
  MatrixView<double> rows;          // (n, r)
  VectorView<std::int64_t> starts;  // (G + 1,)  ascending from 0 to n: where each group begins
};

/// Groups of training rows, each of one class, beside the spectrum of the scatter S about the means
/// of the classes. Leaving out a group of m rows of a class of n, with the mean c of their
/// deviations v_i, does this:
///
///   v  becomes  v + m / (n - m) c,   S  becomes  S - sum (v_i + a c)(v_i + a c)'
///
/// with (1 + a)^2 = n / (n - m). Where a class is left out as a whole, its c is zero.
struct TrainingGroups {
  RowGroups groups;                       // of coordinates V'v_i, V the eigenvectors of S with
                                          // value > resolution
  VectorView<double> eigenvalues;         // (r,)  those values, descending
  VectorView<double> class_sizes;         // (G,)  n
  VectorView<double> degrees_of_freedom;  // (G,)  scatter / covariance: rows left less classes left
  double resolution;                      //       eigenvalues of a scatter up to this are zero
};

/// What is done to the variances of each model, as in a fit.
struct Regularization {
  bool shrinkage = false;  // towards their mean, by the oracle approximating shrinkage
  double floor = 0;        // none below this share of the largest
};

/// What else makes scores of the spectrum without a group.
struct GroupModels {
  Index n_components;                    // k, at most r
  VectorView<std::int64_t> n_variances;  // (G,)  the noise variance is a mean of these, less those
                                         //       of the subspace: min(rows left less classes left
                                         //       plus one, d)
  Index n_features;                      // d
  Regularization regularization;
};

/// Scores (n_types, n) of rows, each under the model that is fitted without a group: the group's
/// own rows, or the rows of that number in `scored`, given as V'(x - mean) with the mean that their
/// class has without the group (what of x - mean is outside of V is not seen).
///
/// The matrix diag(eigenvalues) - U U' (r, r) of a group, of columns V'(v_i + a c), is decomposed
/// anew: 2 m r^2 + 10 r^3 floating-point operations or so, and 5 r^2 numbers of memory for each
/// thread. Where groups are much smaller than r, and variances are not regularised, sums over the
/// eigenpairs are had without them, for some 50 m^2 r operations each (see `Downdate`); but for
/// groups where that may lose digits.
///
/// Equal to fitting again but for rounding, relative 1e-8 where the spectrum left is known that
/// well. k counts at most the directions that have variance without the group.
///
/// Where no variance is left (all other rows equal), fre is the squared distance and the other
/// scores are infinite; without a degree of freedom they are NaN; so are all scores of a group that
/// is all of its class, unless it is `scored` that is scored, and of coordinates that are not
/// finite. Results do not depend on `n_threads`.
Matrix<double> leave_groups_out(const TrainingGroups& training,
                                const std::optional<RowGroups>& scored, const GroupModels& models,
                                const std::vector<ScoreType>& types, int n_threads);

/// Residuals (n, r) of the same rows, v less its projection on the subspace, in the coordinates V.
/// Their squared lengths are the fre.
Matrix<double> leave_groups_out_residuals(const TrainingGroups& training,
                                          const std::optional<RowGroups>& scored,
                                          Index n_components, int n_threads);

/// Sums (G,) of the eigenvalues beyond the leading k of the scatter without each group: with its
/// trace they tell which k holds a share of the variance. NaN where a group is its whole class.
Vector<double> leave_groups_out_rests(const TrainingGroups& training, Index n_components,
                                      int n_threads);

}  // namespace pydfm
