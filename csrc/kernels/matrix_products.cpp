#include "kernels/matrix_products.hpp"

namespace pydfm {

namespace {

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

}  // namespace pydfm
