#include "pydfm/moments.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "pydfm/memory.hpp"
#include "pydfm/packed_products.hpp"
#include "pydfm/products.hpp"

namespace pydfm {

namespace {

// Rows of a block of moments, columns of one of a Gram matrix: few enough that a tile's share of
// it, packed, stays in the second-level cache.
constexpr Index kBlock = 128;

// Some columns of block after block of rows, each centred about its own mean and packed. What joins
// a block to those before it is one more row: the step from their mean to its own, weighted.
class CentredBlocks {
 public:
  explicit CentredBlocks(Index columns)
      : packed_(columns, kBlock + 1), mean_(Vector<double>::Zero(columns)) {}

  const Packed& packed() const { return packed_; }
  // Mean of all blocks, minus the shift.
  const Vector<double>& mean() const { return mean_; }
  Index count() const { return count_; }

  // The shift goes first: near the rows, it leaves numbers of the size of their spread, so that a
  // large offset costs no digits.
  template <typename Rows>
  void take(const Rows& rows, const Eigen::RowVectorXd& shift) {
    const Index height = rows.rows();
    Vector<double> step = Vector<double>::Zero(rows.cols());
    Vector<double> row(rows.cols());
    for (Index i = 0; i < height; ++i) {
      row = rows.row(i).template cast<double>() - shift;
      step += row;
      packed_.set_element(i, row);
    }
    step /= static_cast<double>(height);
    packed_.subtract(step, height);
    row.setZero();
    for (Index i = height; i < kBlock; ++i) packed_.set_element(i, row);

    if (count_ > 0) step -= mean_;
    const double share = static_cast<double>(height) / static_cast<double>(count_ + height);
    packed_.set_element(kBlock, std::sqrt(static_cast<double>(count_) * share) * step);
    mean_ += share * step;
    count_ += height;
  }

 private:
  Packed packed_;
  Vector<double> mean_;
  Index count_ = 0;
};

// Rows [range.begin, range.begin + range.size) of a block of columns, less shift and mean, packed.
template <typename Block>
Packed packed_rows(const Block& block, Range range, const Eigen::RowVectorXd& shift,
                   const Eigen::RowVectorXd& mean) {
  Packed packed(range.size, block.cols());
  Matrix<double> panel = Matrix<double>::Zero(Packed::kWidth, block.cols());
  for (Index i = 0; i < range.size; i += Packed::kWidth) {
    const Index height = std::min(Packed::kWidth, range.size - i);
    for (Index row = 0; row < height; ++row) {
      panel.row(row) = block.row(range.begin + i + row).template cast<double>() - shift - mean;
    }
    packed.set_panel(i / Packed::kWidth, panel);
  }
  return packed;
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
  const SymmetricSum sum(d, (n + kBlock - 1) / kBlock);
  const Eigen::RowVectorXd first_row = rows.row(0).template cast<double>();
  std::vector<Moments> parts(static_cast<std::size_t>(sum.n_parts()));
  for (Moments& part : parts) part.mean.resize(d);

  std::vector<Matrix<double>> scatters = sum.add_up(
      n_threads, [&](Index p, Index first, Index last, Range height, Range width, auto& tile) {
        const bool diagonal = height.begin == width.begin;
        CentredBlocks left(height.size), right(diagonal ? 0 : width.size);
        const auto take = [&](CentredBlocks& blocks, Index b, Range columns) {
          const Index count = std::min(kBlock, n - b * kBlock);
          blocks.take(rows.block(b * kBlock, columns.begin, count, columns.size),
                      first_row.segment(columns.begin, columns.size));
        };
        for (Index b = first; b < last; ++b) {
          poll();
          take(left, b, height);
          if (diagonal) {
            add_products(left.packed(), left.packed(), Entries::kLower, tile);
          } else {
            take(right, b, width);
            add_products(left.packed(), right.packed(), Entries::kAll, tile);
          }
        }
        if (diagonal) {
          Moments& part = parts[static_cast<std::size_t>(p)];
          part.mean.segment(height.begin, height.size) = left.mean();
          if (height.begin == 0) part.count = left.count();
        }
      });
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i].scatter = std::move(scatters[i]);

  Moments all = std::move(parts.front());
  for (std::size_t i = 1; i < parts.size(); ++i) add(all, parts[i], n_threads);
  all.mean += first_row.transpose();
  mirror_lower(all.scatter);
  return all;
}

Moments merge(const MomentsView& a, const MomentsView& b) {
  if (a.count == 0) return b.copy();
  if (b.count == 0) return a.copy();
  const Index d = a.mean.size();
  const double n_a = static_cast<double>(a.count);
  const double n_b = static_cast<double>(b.count);
  const Vector<double> delta = b.mean - a.mean;
  const Vector<double> step = std::sqrt(n_a * n_b / (n_a + n_b)) * delta;
  Moments both{a.count + b.count, a.mean + n_b / (n_a + n_b) * delta, large_matrix(d, d)};
  // Memory is what it costs: each number is read and written once.
  for (Index i = 0; i < d; ++i) {
    if (i % kBlock == 0) poll();
    both.scatter.row(i) = a.scatter.row(i) + b.scatter.row(i) + step[i] * step.transpose();
  }
  return both;
}

Moments subtract(const MomentsView& a, const MomentsView& b) {
  if (b.count == 0) return a.copy();
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
  const SymmetricSum sum(n, (d + kBlock - 1) / kBlock);
  Gram result{Vector<double>(d), {}};
  std::vector<Matrix<double>> sums = sum.add_up(
      n_threads, [&](Index, Index first, Index last, Range height, Range width, auto& tile) {
        const bool diagonal = height.begin == width.begin;
        for (Index b = first; b < last; ++b) {
          poll();
          const auto block = rows.middleCols(b * kBlock, std::min(kBlock, d - b * kBlock));
          const Eigen::RowVectorXd shift = block.row(0).template cast<double>();
          Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(block.cols());
          for (Index i = 0; i < n; ++i) mean += block.row(i).template cast<double>() - shift;
          mean /= static_cast<double>(n);
          const Packed left = packed_rows(block, height, shift, mean);
          if (diagonal) {
            add_products(left, left, Entries::kLower, tile);
          } else {
            add_products(left, packed_rows(block, width, shift, mean), Entries::kAll, tile);
          }
          if (diagonal && height.begin == 0) {
            result.mean.segment(b * kBlock, block.cols()) = (shift + mean).transpose();
          }
        }
      });
  result.gram = std::move(sums.front());
  for (std::size_t i = 1; i < sums.size(); ++i) result.gram += sums[i];
  mirror_lower(result.gram);
  return result;
}

template Moments moments(const MatrixView<float>&, int);
template Moments moments(const MatrixView<double>&, int);
template Gram gram(const MatrixView<float>&, int);
template Gram gram(const MatrixView<double>&, int);

}  // namespace pydfm
