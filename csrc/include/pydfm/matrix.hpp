// The matrix and view types every core function takes and returns.
#pragma once

#include <Eigen/Core>

namespace pydfm {

using Eigen::Index;

/// Dense row-major matrix: numpy's C order, one sample (or one component) per row.
template <typename Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <typename Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

/// Read-only view of somebody else's C-contiguous memory.
template <typename Scalar>
using MatrixView = Eigen::Map<const Matrix<Scalar>>;

template <typename Scalar>
using VectorView = Eigen::Map<const Vector<Scalar>>;

template <typename Scalar>
MatrixView<Scalar> view(const Matrix<Scalar>& matrix) {
  return {matrix.data(), matrix.rows(), matrix.cols()};
}

template <typename Scalar>
VectorView<Scalar> view(const Vector<Scalar>& vector) {
  return {vector.data(), vector.size()};
}

}  // namespace pydfm
