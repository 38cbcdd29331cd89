#include "pydfm/moments.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "pydfm/memory.hpp"
#include "pydfm/products.hpp"

namespace pydfm {

namespace {

// Rows of a block: few enough that it stays in the second-level cache.
constexpr Index kRows = 128;

// Rows of products at a time.
constexpr Index kStrip = 512;

// Columns of a block of the Gram matrix of n rows.
Index columns_per_block(Index n) {
  return std::clamp<Index>((Index{1} << 16) / n / 32 * 32, 64, 256);
}

// Rows minus their mean, in `block`; returns that mean minus `shift`. The shift goes first: near
// the rows, it leaves numbers of the size of their spread, so that a large offset costs no digits.
template <typename Rows>
Vector<double> centre(const Rows& rows, const Eigen::RowVectorXd& shift, Matrix<double>& block) {
  Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(rows.cols());
  for (Index i = 0; i < rows.rows(); ++i) mean += rows.row(i).template cast<double>() - shift;
  mean /= static_cast<double>(rows.rows());
  block.resize(rows.rows(), rows.cols());
  for (Index i = 0; i < rows.rows(); ++i) {
    block.row(i) = rows.row(i).template cast<double>() - shift - mean;
  }
  return mean.transpose();
}

// lower(c) += weight a a' in rows [begin, begin + height).
void add_lower_outer(const Vector<double>& a, double weight, Index begin, Index height,
                     Matrix<double>& c) {
  c.block(begin, 0, height, begin + height).noalias() +=
      weight * a.segment(begin, height) * a.head(begin + height).transpose();
}

// Adds the moments of `b`, disjoint rows, to those of `a`; reads and writes lower triangles.
void add(Moments& a, const Moments& b, int n_threads) {
  const double n_a = static_cast<double>(a.count);
  const double n_b = static_cast<double>(b.count);
  const Vector<double> step = b.mean - a.mean;
  const Index d = step.size();
  constexpr Index kHeight = 64;
  parallel_blocks(d, kHeight, n_threads, [&](Index begin, Index height) {
    const Index width = begin + height;
    a.scatter.block(begin, 0, height, width) += b.scatter.block(begin, 0, height, width);
    add_lower_outer(step, n_a * n_b / (n_a + n_b), begin, height, a.scatter);
  });
  a.mean += step * (n_b / (n_a + n_b));
  a.count += b.count;
}

}  // namespace

template <typename Scalar>
Moments moments(const MatrixView<Scalar>& rows, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  if (n < 1) throw std::invalid_argument("rows is empty: moments need at least one row");

  // Means are kept minus the first row until the end.
  const ProductTasks tasks(d, (n + kRows - 1) / kRows);
  const Eigen::RowVectorXd first_row = rows.row(0).template cast<double>();
  std::vector<Moments> parts(static_cast<std::size_t>(tasks.n_parts()));
  for (Moments& part : parts) part.scatter = large_matrix(d, d);

  tasks.run(n_threads, [&](Index p, Index first_block, Index last_block, Index begin, Index end) {
    Moments& part = parts[static_cast<std::size_t>(p)];
    part.scatter.middleRows(begin, end - begin).setZero();
    Matrix<double> block;
    Vector<double> mean;
    Index count = 0;
    const Eigen::RowVectorXd shift = first_row.head(end);
    for (Index b = first_block; b < last_block; ++b) {
      const Index height = std::min(kRows, n - b * kRows);
      const Vector<double> block_mean = centre(rows.block(b * kRows, 0, height, end), shift, block);
      if (count == 0) mean = block_mean;
      const Vector<double> step = block_mean - mean;
      const double share = static_cast<double>(height) / static_cast<double>(count + height);
      const double weight = static_cast<double>(count) * share;
      for (Index i = begin; i < end; i += kStrip) {
        const Index strip = std::min(kStrip, end - i);
        add_lower_products(block.transpose(), i, strip, part.scatter);
        if (count > 0) add_lower_outer(step, weight, i, strip, part.scatter);
      }
      mean += share * step;
      count += height;
    }
    if (end == d) {
      part.mean = std::move(mean);
      part.count = count;
    }
  });

  Moments all = std::move(parts.front());
  for (std::size_t i = 1; i < parts.size(); ++i) add(all, parts[i], n_threads);
  all.mean += first_row.transpose();
  mirror_lower(all.scatter);
  return all;
}

Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  Moments both = a;
  add(both, b, 1);
  mirror_lower(both.scatter);
  return both;
}

Moments subtract(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (b.count > a.count) {
    throw std::invalid_argument("b has " + std::to_string(b.count) + " rows, a has " +
                                std::to_string(a.count) + "; b's rows must be among those of a");
  }
  const Index d = a.mean.size();
  const Index count = a.count - b.count;
  if (count == 0) return {0, Vector<double>::Zero(d), Matrix<double>::Zero(d, d)};
  const double n = static_cast<double>(count);
  const double n_b = static_cast<double>(b.count);
  Moments rest{count, a.mean + (n_b / n) * (a.mean - b.mean), a.scatter - b.scatter};
  add_lower_outer(b.mean - rest.mean, -n * n_b / static_cast<double>(a.count), 0, d, rest.scatter);
  const double rounding =
      static_cast<double>(a.count + d) * std::numeric_limits<double>::epsilon() *
      (a.scatter.trace() + static_cast<double>(a.count) * std::numeric_limits<double>::epsilon() *
                               a.mean.squaredNorm());
  if ((rest.scatter.diagonal().array() < -rounding).any()) {
    throw std::invalid_argument(
        "a without b has a negative variance; b's rows must be among those of a");
  }
  mirror_lower(rest.scatter);
  return rest;
}

template <typename Scalar>
Gram gram(const MatrixView<Scalar>& rows, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  if (n < 1) throw std::invalid_argument("rows is empty: a Gram matrix needs at least one row");

  // Blocks are of columns: the mean of a column needs no other.
  const Index columns = columns_per_block(n);
  const ProductTasks tasks(n, (d + columns - 1) / columns);
  Gram result{Vector<double>(d), {}};
  std::vector<Matrix<double>> parts(static_cast<std::size_t>(tasks.n_parts()));
  for (Matrix<double>& part : parts) part = large_matrix(n, n);
  tasks.run(n_threads, [&](Index p, Index first_block, Index last_block, Index begin, Index end) {
    Matrix<double>& part = parts[static_cast<std::size_t>(p)];
    part.middleRows(begin, end - begin).setZero();
    Matrix<double> block;
    for (Index b = first_block; b < last_block; ++b) {
      const Index first = b * columns;
      const Index width = std::min(columns, d - first);
      const auto from = rows.block(0, first, n, width);
      const Eigen::RowVectorXd shift = from.row(0).template cast<double>();
      const Vector<double> mean = centre(from, shift, block);
      if (end == n) result.mean.segment(first, width) = shift.transpose() + mean;
      for (Index i = begin; i < end; i += kStrip) {
        add_lower_products(block, i, std::min(kStrip, end - i), part);
      }
    }
  });
  result.gram = std::move(parts.front());
  for (std::size_t i = 1; i < parts.size(); ++i) result.gram += parts[i];
  mirror_lower(result.gram);
  return result;
}

template Moments moments(const MatrixView<float>&, int);
template Moments moments(const MatrixView<double>&, int);
template Gram gram(const MatrixView<float>&, int);
template Gram gram(const MatrixView<double>&, int);

}  // namespace pydfm
