#include "pydfm/band.hpp"

#include <algorithm>
#include <vector>

#include <Eigen/Householder>

#include "pydfm/memory.hpp"
#include "pydfm/packed_products.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

namespace {

using ColumnMajor = Eigen::MatrixXd;
using Eigen::VectorXd;
// Columns of a column-major matrix as the rows they are in memory.
using AsRows = Eigen::Map<Matrix<double>, 0, Eigen::OuterStride<>>;

// Rows and columns of a tile. The matrix is padded with zeros to whole tiles.
constexpr Index kTile = 2 * kBand;
static_assert(kBand % Packed::kWidth == 0);

// QR by halves (Elmroth and Gustavson 2000): the reflectors, with ones on the diagonal and zeros
// above, take the place of `panel`; the upper triangle of `r`, zero as yet, becomes R.
void factorise(Eigen::Ref<ColumnMajor> panel, Eigen::Ref<VectorXd> factors,
               Eigen::Ref<ColumnMajor> r) {
  const Index n = panel.cols();
  if (n == 1) {
    VectorXd essential(panel.rows() - 1);
    panel.col(0).makeHouseholder(essential, factors[0], r(0, 0));
    panel(0, 0) = 1;
    panel.col(0).tail(essential.size()) = essential;
    return;
  }
  const Index half = n / 2;
  auto left = panel.leftCols(half);
  auto right = panel.rightCols(n - half);
  factorise(left, factors.head(half), r.topLeftCorner(half, half));
  const ColumnMajor products = left.transpose() * right;
  const ColumnMajor scaled = block_factor(left, factors.head(half)).transpose() * products;
  right.noalias() -= left * scaled;
  r.topRightCorner(half, n - half) = right.topRows(half);
  right.topRows(half).setZero();
  factorise(right.bottomRows(panel.rows() - half), factors.tail(n - half),
            r.bottomRightCorner(n - half, n - half));
}

AsRows as_rows(ColumnMajor& a, Index row, Index column, Index rows, Index columns) {
  return {&a(row, column), columns, rows, Eigen::OuterStride<>(a.outerStride())};
}

// Columns of a tile, or rows of its transpose, as vectors.
template <typename Rows>
void pack(const Rows& columns, Packed& packed) {
  for (Index i = 0; i < packed.panels(); ++i) {
    packed.set_panel(i, columns.middleRows(i * Packed::kWidth, Packed::kWidth));
  }
}

// Elements [0, columns.cols()) of vectors that are rows.
template <typename Columns>
void pack_rows(const Columns& columns, Index first, Packed& packed) {
  for (Index p = 0; p < columns.cols(); ++p) packed.set_element(first + p, columns.col(p));
}

// What a panel's update needs of V, W and A V in the rows of a tile.
struct Tile {
  Packed entries{kTile, kTile};            // a tile of A
  Packed v{kBand, kTile};                  // columns of V as vectors
  Packed left{kTile, 2 * kBand};           // rows of -[W V]
  Packed right{kTile, 2 * kBand};          // rows of [V W]
  Matrix<double> product{kTile, kBand};    // A V
  Matrix<double> v_product{kBand, kBand};  // its part of V' A V
};

}  // namespace

BandForm reduce_to_band(const MatrixView<double>& source, double scale, int n_threads) {
  const Index n = source.rows();
  const Index n_tiles = (n + kTile - 1) / kTile;
  const Index end = n_tiles * kTile;
  BandForm form{n,
                ColumnMajor::Zero(3 * kBand, end + 2 * kBand),
                {kBand, VectorXd::Zero(std::max<Index>(end - kBand, 0)), ColumnMajor()}};
  ColumnMajor& a = form.reflectors.vectors;
  // A packet more, so that columns do not meet in the same cache lines.
  a.resize(end + 8, end);
  on_large_pages(a);
  a.setZero();
  {
    // Row by row, the lower triangle of the source is the upper one of `a`.
    auto square = a.topLeftCorner(n, n);
    square.triangularView<Eigen::Upper>() = scale * source.transpose();
    square.triangularView<Eigen::StrictlyLower>() = square.transpose();
  }

  Team team(n_threads);
  std::vector<Tile> tiles(static_cast<std::size_t>(n_tiles));
  for (Index k = 0; k < end; k += kBand) {
    for (Index j = k; j < k + kBand; ++j) {
      form.band.col(j).head(k + kBand - j) = a.col(j).segment(j, k + kBand - j);
    }
    const Index begin = k + kBand;
    if (begin == end) break;
    a.middleCols(k, kBand).topRows(begin).setZero();
    auto panel = a.block(begin, k, end - begin, kBand);
    auto factors = form.reflectors.factors.segment(k, kBand);
    ColumnMajor r = ColumnMajor::Zero(kBand, kBand);
    factorise(panel, factors, r);
    for (Index j = 0; j < kBand; ++j) {
      form.band.col(k + j).segment(kBand - j, j + 1) = r.col(j).head(j + 1);
    }

    // Where the first tile begins before the rest of the matrix does, V and W are zero.
    const Index first = begin / kTile;
    const auto rows = [&](Index tile) { return (first + tile) * kTile; };
    const auto v_of = [&](Index tile) { return a.block(rows(tile), k, kTile, kBand); };
    const Index n_left = n_tiles - first;
    team.run(n_left, [&](Index t) {
      pack(as_rows(a, rows(t), k, kTile, kBand), tiles[first + t].v);
      pack_rows(v_of(t), 0, tiles[first + t].right);
      pack_rows(-v_of(t), kBand, tiles[first + t].left);
    });
    team.run(n_left, [&](Index t) {
      Tile& tile = tiles[first + t];
      Packed& entries = tile.entries;
      tile.product.setZero();
      for (Index other = 0; other < n_left; ++other) {
        if (other <= t) {
          pack_rows(a.block(rows(t), rows(other), kTile, kTile), 0, entries);
        } else {
          pack(as_rows(a, rows(other), rows(t), kTile, kTile), entries);
        }
        add_products(entries, tiles[first + other].v, Entries::kAll, tile.product);
      }
      tile.v_product.noalias() = v_of(t).transpose() * tile.product;
    });
    ColumnMajor v_product = ColumnMajor::Zero(kBand, kBand);
    for (Index t = 0; t < n_left; ++t) v_product += tiles[first + t].v_product;
    const ColumnMajor f = block_factor(panel, factors);
    const ColumnMajor half = 0.5 * (f.transpose() * v_product * f);
    team.run(n_left, [&](Index t) {
      Tile& tile = tiles[first + t];
      ColumnMajor w = tile.product * f;
      w.noalias() -= v_of(t) * half;
      if (rows(t) < begin) w.topRows(begin - rows(t)).setZero();
      pack_rows(w, kBand, tile.right);
      pack_rows(-w, 0, tile.left);
    });
    team.run(n_left * (n_left + 1) / 2, [&](Index task) {
      Index i = 0;
      while ((i + 1) * (i + 2) / 2 <= task) ++i;
      const Index j = task - i * (i + 1) / 2;
      add_products(tiles[first + j].left, tiles[first + i].right, Entries::kAll,
                   as_rows(a, rows(i), rows(j), kTile, kTile));
    });
  }
  // What is left reflects the padding.
  form.reflectors.factors.conservativeResize(std::max<Index>(n - kBand, 0));
  return form;
}

}  // namespace pydfm
