#include "pydfm/moments.hpp"

#include <algorithm>
#include <stdexcept>

#include "pydfm/parallel.hpp"
#include "pydfm/products.hpp"

namespace pydfm {

namespace {

// Rows are taken in blocks of this many bytes of float64, so that a block stays in the caches.
constexpr Index kBlockBytes = Index{8} << 20;

Index rows_per_block(Index d) {
  const Index fit = kBlockBytes / static_cast<Index>(sizeof(double)) / std::max<Index>(d, 1);
  return std::clamp<Index>(fit, 64, 2048);
}

// Rows minus `shift`, in float64.
template <typename Scalar>
void centre(const MatrixView<Scalar>& rows, Index begin, const Vector<double>& shift,
            Matrix<double>& block, int n_threads) {
  constexpr Index kRows = 32;
  parallel_for((block.rows() + kRows - 1) / kRows, n_threads, [&](Index task) {
    const Index first = task * kRows;
    const Index count = std::min(kRows, block.rows() - first);
    block.middleRows(first, count) =
        rows.middleRows(begin + first, count).template cast<double>().rowwise() - shift.transpose();
  });
}

}  // namespace

template <typename Scalar>
Moments moments(const MatrixView<Scalar>& rows, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  if (n < 1) throw std::invalid_argument("rows is empty: moments need at least one row");

  const Index block_rows = std::min(n, rows_per_block(d));
  const Vector<double> shift =
      rows.topRows(block_rows).template cast<double>().colwise().mean().transpose();
  Vector<double> sum = Vector<double>::Zero(d);
  Matrix<double> scatter = Matrix<double>::Zero(d, d);
  for (Index begin = 0; begin < n; begin += block_rows) {
    Matrix<double> block(std::min(block_rows, n - begin), d);
    centre(rows, begin, shift, block, n_threads);
    sum += block.colwise().sum().transpose();
    add_lower_products(block.transpose(), scatter, n_threads);
  }

  const Vector<double> offset = sum / static_cast<double>(n);
  scatter.selfadjointView<Eigen::Lower>().rankUpdate(offset, -static_cast<double>(n));
  mirror_lower(scatter);
  return {n, shift + offset, std::move(scatter)};
}

Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double n_a = static_cast<double>(a.count);
  const double n_b = static_cast<double>(b.count);
  const Vector<double> step = b.mean - a.mean;
  Moments both{a.count + b.count, a.mean + step * (n_b / (n_a + n_b)), a.scatter + b.scatter};
  both.scatter.selfadjointView<Eigen::Lower>().rankUpdate(step, n_a * n_b / (n_a + n_b));
  mirror_lower(both.scatter);
  return both;
}

template <typename Scalar>
Gram gram(const MatrixView<Scalar>& rows, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  if (n < 1) throw std::invalid_argument("rows is empty: a Gram matrix needs at least one row");

  // Columns are taken in blocks: the mean of a block needs no other column.
  constexpr Index kColumns = 1024;
  Gram result{Vector<double>(d), Matrix<double>::Zero(n, n)};
  for (Index begin = 0; begin < d; begin += kColumns) {
    const Index count = std::min(kColumns, d - begin);
    Matrix<double> block(n, count);
    constexpr Index kStrip = 64;
    parallel_for((count + kStrip - 1) / kStrip, n_threads, [&](Index task) {
      const Index first = task * kStrip;
      const Index width = std::min(kStrip, count - first);
      auto strip = block.middleCols(first, width);
      strip = rows.middleCols(begin + first, width).template cast<double>();
      // Twice: the second mean takes away what rounding left of a large first one.
      const Vector<double> first_mean = strip.colwise().mean().transpose();
      strip.rowwise() -= first_mean.transpose();
      const Vector<double> rest = strip.colwise().mean().transpose();
      strip.rowwise() -= rest.transpose();
      result.mean.segment(begin + first, width) = first_mean + rest;
    });
    add_lower_products(block, result.gram, n_threads);
  }
  mirror_lower(result.gram);
  return result;
}

template Moments moments(const MatrixView<float>&, int);
template Moments moments(const MatrixView<double>&, int);
template Gram gram(const MatrixView<float>&, int);
template Gram gram(const MatrixView<double>&, int);

}  // namespace pydfm
