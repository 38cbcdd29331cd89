#include "pydfm/eigensolver.hpp"

#include <Eigen/Eigenvalues>

namespace pydfm {

Eigenpairs eigh(const MatrixView<double>& a, int /*n_threads*/) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(a);
  if (solver.info() != Eigen::Success) {
    throw EigensolverError("the eigenvalue iteration did not converge");
  }
  return {solver.eigenvalues().reverse(), solver.eigenvectors().rowwise().reverse().transpose()};
}

}  // namespace pydfm
