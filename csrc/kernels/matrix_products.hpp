// General products of matrices in float64. They are Eigen's; its templates are instantiated in one
// source, since they take longer to compile than all that calls them.
#pragma once

#include "kernels/matrix.hpp"

namespace pydfm {

/// A matrix, or a block of one, or the transpose of either: elements of a row or of a column lie
/// side by side.
template <typename Scalar>
struct Strided {
  template <typename Derived>
  Strided(const Eigen::MatrixBase<Derived>& matrix)  // what a product takes
      : data(const_cast<Scalar*>(matrix.derived().data())),
        rows(matrix.rows()),
        cols(matrix.cols()),
        stride(matrix.derived().outerStride()),
        row_major(Derived::IsRowMajor) {
    static_assert(Derived::InnerStrideAtCompileTime == 1);
  }

  Scalar* data;
  Index rows, cols;
  Index stride;  // from one row to the next, or from one column
  bool row_major;
};

/// c += scale * a * b. The memory of c must not be that of a or b.
void add_product(const Strided<const double>& a, const Strided<const double>& b,
                 const Strided<double>& c, double scale = 1);

/// a * b, as a matrix of either storage order.
template <typename Result = Matrix<double>>
Result product(const Strided<const double>& a, const Strided<const double>& b) {
  Result c = Result::Zero(a.rows, b.cols);
  add_product(a, b, c);
  return c;
}

/// a * b by `n_threads` threads, each some rows of the result, or some columns where these are
/// more.
Matrix<double> product(const MatrixView<double>& a, const Strided<const double>& b, int n_threads);

}  // namespace pydfm
