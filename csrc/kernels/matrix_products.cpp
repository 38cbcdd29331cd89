#include "kernels/matrix_products.hpp"

#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

// Rows or columns of a product to a task: enough to pay for packing the other factor once more.
constexpr Index kBlock = 256;

template <typename Scalar, int kOrder>
using Mapped = Eigen::Map<
    std::conditional_t<std::is_const_v<Scalar>,
                       const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, kOrder>,
                       Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, kOrder>>,
    Eigen::Unaligned, Eigen::OuterStride<>>;

template <int kOrder, typename Scalar>
Mapped<Scalar, kOrder> map(const Strided<Scalar>& m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}

template <typename Scalar>
Strided<Scalar> transposed(const Strided<Scalar>& m) {
  Strided<Scalar> result = m;
  result.rows = m.cols;
  result.cols = m.rows;
  result.row_major = !m.row_major;
  return result;
}

template <int kLeft, int kRight>
void add(const Strided<const double>& a, const Strided<const double>& b, const Strided<double>& c,
         double scale) {
  map<Eigen::ColMajor>(c).noalias() += (scale * map<kLeft>(a)) * map<kRight>(b);
}

}  // namespace

void add_product(const Strided<const double>& a, const Strided<const double>& b,
                 const Strided<double>& c, double scale) {
  constexpr int kRows = Eigen::RowMajor, kColumns = Eigen::ColMajor;
  if (c.row_major) {
    add_product(transposed(b), transposed(a), transposed(c), scale);
  } else if (a.row_major) {
    b.row_major ? add<kRows, kRows>(a, b, c, scale) : add<kRows, kColumns>(a, b, c, scale);
  } else {
    b.row_major ? add<kColumns, kRows>(a, b, c, scale) : add<kColumns, kColumns>(a, b, c, scale);
  }
}

Matrix<double> product(const MatrixView<double>& a, const Strided<const double>& b, int n_threads) {
  Matrix<double> c = Matrix<double>::Zero(a.rows(), b.cols);
  const bool by_rows = a.rows() >= b.cols;
  parallel_blocks(by_rows ? a.rows() : b.cols, kBlock, n_threads, [&](Index first, Index count) {
    if (by_rows) {
      add_product(a.middleRows(first, count), b, c.middleRows(first, count));
    } else {
      Strided<const double> some = b;
      some.data += first * (b.row_major ? 1 : b.stride);
      some.cols = count;
      add_product(a, some, c.middleCols(first, count));
    }
  });
  return c;
}

}  // namespace pydfm
