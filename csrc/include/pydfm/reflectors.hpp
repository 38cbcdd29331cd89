// Products of Householder reflectors, applied in blocks.
#pragma once

#include "pydfm/matrix.hpp"

namespace pydfm {

/// The triangular F of H_0 H_1 ... = I - V F V', where H_i = I - factors_i v_i v_i' and v_i is
/// column i of `vectors` (Schreiber and Van Loan 1989).
Eigen::MatrixXd block_factor(const Eigen::Ref<const Eigen::MatrixXd>& vectors,
                             const Eigen::Ref<const Vector<double>>& factors);

/// Q = H_0 H_1 ... of n x n reflectors that each leave one row more as it is.
struct Reflectors {
  Index offset;            // v_j, column j of `vectors`, is zero above row j + offset
  Vector<double> factors;  // at most (n - offset,)
  Eigen::MatrixXd vectors;

  /// rows = rows Q', that is: each row z of `rows` (k, n) becomes Q z.
  void apply(Matrix<double>& rows, int n_threads) const;
};

}  // namespace pydfm
