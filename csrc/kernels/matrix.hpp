// Eigen's matrices and views, as the core uses them.
#pragma once

#include <cstddef>

#include <Eigen/Core>

#include "runtime/arrays.hpp"
#include "runtime/memory.hpp"

namespace pydfm {

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

template <typename Scalar>
RowsView as_rows(const Matrix<Scalar>& matrix) {
  return {matrix.data(), matrix.rows(), matrix.cols()};
}

/// Advises the system to keep `matrix`, which nobody has written to yet, on large pages.
template <typename Plain>
void on_large_pages(Eigen::PlainObjectBase<Plain>& matrix) {
  advise_large_pages(matrix.data(),
                     static_cast<std::size_t>(matrix.size()) * sizeof(*matrix.data()));
}

/// A matrix (rows, cols) of undefined values, on large pages where the system has them.
inline Matrix<double> large_matrix(Index rows, Index cols) {
  Matrix<double> matrix(rows, cols);
  on_large_pages(matrix);
  return matrix;
}

}  // namespace pydfm
