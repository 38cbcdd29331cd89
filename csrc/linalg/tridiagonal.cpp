#include "linalg/tridiagonal.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include <Eigen/Householder>

#include "kernels/matrix_products.hpp"
#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

using ColumnMajor = Eigen::MatrixXd;
using Eigen::VectorXd;

// Rows and columns are padded with zeros to whole packets of this many.
constexpr Index kPacket = 8;
using Packet = Eigen::Array<double, kPacket, 1>;

// Reflectors applied at once.
constexpr Index kBlock = 64;

// Columns reduced before the rest of the matrix is brought up to date.
constexpr Index kPanel = 32;

Index padded(Index n) { return (n + kPacket - 1) / kPacket * kPacket; }

Eigen::Map<const Packet> load(const double* p) { return Eigen::Map<const Packet>(p); }

void add(const Packet& terms, double* p) { Eigen::Map<Packet>{p} += terms; }

// y += A x and the same for A', for kPacket columns of a symmetric matrix from row `begin` (its
// diagonal block, of which both triangles are there) to row `end`. A is read once.
void multiply_strip(const ColumnMajor& a, Index begin, Index end, const VectorXd& x, VectorXd& y) {
  {
    Packet sum = Packet::Zero();
    for (Index c = begin; c < begin + kPacket; ++c) sum += load(&a(begin, c)) * x[c];
    add(sum, &y[begin]);
  }
  // All columns at once, so that y is read and written once for the eight of them.
  const double* columns[kPacket];
  Packet sums[kPacket];
  for (Index c = 0; c < kPacket; ++c) {
    columns[c] = &a(0, begin + c);
    sums[c].setZero();
  }
  const Packet x_columns = load(&x[begin]);
  for (Index r = begin + kPacket; r < end; r += kPacket) {
    const Packet x_rows = load(&x[r]);
    Packet row_sum = Packet::Zero();
    for (Index c = 0; c < kPacket; ++c) {
      const Packet entries = load(columns[c] + r);
      row_sum += entries * x_columns[c];
      sums[c] += entries * x_rows;
    }
    add(row_sum, &y[r]);
  }
  for (Index c = 0; c < kPacket; ++c) y[begin + c] += sums[c].sum();
}

// y = A x for the symmetric A in rows and columns [begin, end), by groups of columns of about the
// same area, each with a sum of its own.
class SymmetricProduct {
 public:
  SymmetricProduct(const ColumnMajor& a, Index end) : a_(a), end_(end) {
    for (VectorXd& sum : sums_) sum = VectorXd::Zero(end);
  }

  // Sets the columns; returns the number of groups.
  Index start(Index begin) {
    const Index n = end_ - begin;
    n_groups_ = std::clamp<Index>(n / 96, 1, kMostGroups);
    for (Index g = 0; g <= n_groups_; ++g) {
      const double left = 1 - static_cast<double>(g) / static_cast<double>(n_groups_);
      const double column = static_cast<double>(n) * (1 - std::sqrt(left));
      bounds_[g] = begin + std::min(n, padded(static_cast<Index>(column)));
    }
    return n_groups_;
  }

  void multiply(Index group, const VectorXd& x) {
    VectorXd& sum = sums_[group];
    sum.segment(bounds_[group], end_ - bounds_[group]).setZero();
    for (Index c = bounds_[group]; c < bounds_[group + 1]; c += kPacket) {
      multiply_strip(a_, c, end_, x, sum);
    }
  }

  // Rows [first, first + count) of y.
  void add_up(Index first, Index count, Eigen::Ref<VectorXd> y) const {
    y.setZero();
    for (Index g = 0; g < n_groups_; ++g) {
      const Index from = std::max(first, bounds_[g]);
      const Index rows = first + count - from;
      if (rows > 0) y.tail(rows) += sums_[g].segment(from, rows);
    }
  }

 private:
  static constexpr Index kMostGroups = 16;
  const ColumnMajor& a_;
  Index end_;
  Index n_groups_ = 0;
  Index bounds_[kMostGroups + 1] = {};
  VectorXd sums_[kMostGroups];
};

// Calls `work(first, count)` for blocks of the rows [begin, end).
template <typename Work>
void by_rows(Team& team, Index begin, Index end, const Work& work) {
  constexpr Index kRows = 512;
  team.run((end - begin + kRows - 1) / kRows, [&](Index task) {
    const Index first = begin + task * kRows;
    work(first, std::min(kRows, end - first));
  });
}

// A -= V W' + W V' in the lower triangle from `begin` on, in whole tiles, column by column as the
// products take them.
void update(ColumnMajor& a, const ColumnMajor& v_w, const ColumnMajor& w_v, Index begin, Index end,
            Team& team) {
  constexpr Index kTile = 128;
  const Index n_tiles = (end - begin + kTile - 1) / kTile;
  team.run(n_tiles * (n_tiles + 1) / 2, [&](Index task) {
    Index column = 0, row = task;  // row of its column's tiles
    while (row >= n_tiles - column) row -= n_tiles - column++;
    const Index i = begin + (column + row) * kTile;
    const Index j = begin + column * kTile;
    const Index height = std::min(kTile, end - i);
    const Index width = std::min(kTile, end - j);
    add_product(v_w.middleRows(i, height), w_v.middleRows(j, width).transpose(),
                a.block(i, j, height, width), -1);
  });
}

// The triangular F of H_0 H_1 ... = I - V F V', where H_i = I - factors_i v_i v_i' and v_i is
// column i of `vectors` (Schreiber and Van Loan 1989).
ColumnMajor block_factor(const Eigen::Ref<const ColumnMajor>& vectors,
                         const Eigen::Ref<const Vector<double>>& factors) {
  const Index n = vectors.cols();
  const ColumnMajor products = product<ColumnMajor>(vectors.transpose(), vectors);
  ColumnMajor f = ColumnMajor::Zero(n, n);
  for (Index i = 0; i < n; ++i) {
    f(i, i) = factors[i];
    f.col(i).head(i).noalias() = f.topLeftCorner(i, i).triangularView<Eigen::Upper>() *
                                 products.col(i).head(i) * -factors[i];
  }
  return f;
}

}  // namespace

Tridiagonal tridiagonalise(const MatrixView<double>& source, double scale, int n_threads) {
  const Index n = source.rows();
  const Index end = padded(n);
  Tridiagonal t{n,
                VectorXd::Zero(n),
                VectorXd::Zero(std::max<Index>(n - 1, 0)),
                {VectorXd::Zero(std::max<Index>(n - 1, 0)), ColumnMajor()}};
  // One packet more, so that columns do not meet in the same cache lines where n is a power of two.
  ColumnMajor& a = t.reflectors.vectors;
  a.resize(end + kPacket, end);
  on_large_pages(a);
  a.setZero();
  {
    // Row by row, the lower triangle of the source is the upper one of `a`.
    auto square = a.topLeftCorner(n, n);
    square.triangularView<Eigen::Upper>() = scale * source.transpose();
    square.triangularView<Eigen::StrictlyLower>() = square.transpose();
  }

  Team team(n < 128 ? 1 : n_threads);
  SymmetricProduct product(a, end);
  VectorXd x = VectorXd::Zero(end);
  // The panel's reflectors V and its W, in both orders: [V W] and [W V].
  ColumnMajor v_w = ColumnMajor::Zero(end, 2 * kPanel);
  ColumnMajor w_v = ColumnMajor::Zero(end, 2 * kPanel);

  for (Index k = 0; k < n - 1; k += kPanel) {
    const Index width = std::min(kPanel, n - 1 - k);
    if (width < kPanel) {
      v_w.setZero();
      w_v.setZero();
    }
    for (Index i = 0; i < width; ++i) {
      const Index j = k + i;
      if (i > 0) {
        const VectorXd left = w_v.row(j).head(i);
        const VectorXd right = w_v.row(j).segment(kPanel, i);
        by_rows(team, j, n, [&](Index first, Index count) {
          auto column = a.col(j).segment(first, count);
          column.noalias() -= v_w.block(first, 0, count, i) * left;
          column.noalias() -= v_w.block(first, kPanel, count, i) * right;
        });
      }
      t.diagonal[j] = a(j, j);
      const Index next = j + 1;
      const Index below = n - next;
      auto column = a.col(j).segment(next, below);
      x.head(next).setZero();
      auto v = x.segment(next, below);
      v[0] = 1;
      auto essential = v.tail(below - 1);
      column.makeHouseholder(essential, t.reflectors.factors[j], t.off_diagonal[j]);
      column = v;
      a.col(j).head(next).setZero();
      v_w.col(i).segment(next, below) = v;
      w_v.col(kPanel + i).segment(next, below) = v;

      auto w = v_w.col(kPanel + i).segment(next, below);
      const double factor = t.reflectors.factors[j];
      if (factor == 0) {
        w.setZero();
      } else {
        const Index n_groups = product.start(next / kPacket * kPacket);
        VectorXd by_w(i), by_v(i);
        team.run(n_groups + (i > 0 ? 2 : 0), [&](Index task) {
          if (task < n_groups) {
            product.multiply(task, x);
          } else {
            const bool first = task == n_groups;
            (first ? by_w : by_v).noalias() =
                v_w.block(next, first ? kPanel : 0, below, i).transpose() * v;
          }
        });
        by_rows(team, next, n, [&](Index first, Index count) {
          auto part = v_w.col(kPanel + i).segment(first, count);
          product.add_up(first, count, part);
          part.noalias() -= v_w.block(first, 0, count, i) * by_w;
          part.noalias() -= v_w.block(first, kPanel, count, i) * by_v;
        });
        w *= factor;
        w -= (factor / 2 * w.dot(v)) * v;
      }
      w_v.col(i).segment(next, below) = w;
    }
    update(a, v_w, w_v, k + width, end, team);
  }
  if (n > 0) t.diagonal[n - 1] = a(n - 1, n - 1);
  return t;
}

void Reflectors::apply(Matrix<double>& rows, int n_threads) const {
  const Index n = rows.cols();
  const Index n_blocks = (factors.size() + kBlock - 1) / kBlock;
  const auto width = [&](Index b) { return std::min(kBlock, factors.size() - b * kBlock); };
  const auto block = [&](Index b) {
    const Index row = b * kBlock + 1;
    return vectors.block(row, b * kBlock, n - row, width(b));
  };
  std::vector<ColumnMajor> block_factors(static_cast<std::size_t>(n_blocks));
  parallel_for(n_blocks, n_threads, [&](Index b) {
    block_factors[b] = block_factor(block(b), factors.segment(b * kBlock, width(b)));
  });

  // In memory, rows of a row-major matrix are columns of a column-major one.
  Eigen::Map<ColumnMajor> z(rows.data(), n, rows.rows());
  constexpr Index kColumns = 128;
  parallel_blocks(z.cols(), kColumns, n_threads, [&](Index first, Index count) {
    auto columns = z.middleCols(first, count);
    ColumnMajor products, scaled;
    for (Index b = n_blocks - 1; b >= 0; --b) {
      poll();
      const auto v = block(b);
      auto part = columns.bottomRows(v.rows());
      products.setZero(v.cols(), count);
      add_product(v.transpose(), part, products);
      scaled.setZero(v.cols(), count);
      add_product(block_factors[b], products, scaled);
      add_product(v, scaled, part, -1);
    }
  });
}

}  // namespace pydfm
