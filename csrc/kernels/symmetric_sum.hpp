// Sums of symmetric products A A' over many blocks A: half the work of general products, spread
// over threads in tasks that share nothing but what they read.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/matrix.hpp"
#include "kernels/packed_products.hpp"
#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

/// Rows or columns [begin, begin + size).
struct Range {
  Index begin;
  Index size;
};

/// A sum of products over `n_blocks` blocks into the lower triangle of an n x n matrix, cut into
/// tasks: runs of blocks, each with a partial sum of its own, times square tiles, small enough to
/// stay in the cache while all blocks pass by. Shapes alone decide, so that results do not depend
/// on the number of threads.
class SymmetricSum {
 public:
  SymmetricSum(Index n, Index n_blocks) : n_(n), n_blocks_(n_blocks) {
    constexpr Index kPartialBytes = Index{64} << 20;  // of all partial sums, unless there is one
    constexpr Index kTasks = 8;
    constexpr Index kFewest = 16;  // blocks, for which a partial sum pays
    constexpr Index kWidest = 528;
    constexpr Index kStep = 24;  // a whole number of panels
    const Index n_ranges = (n + kWidest - 1) / kWidest;
    width_ = ((n + n_ranges - 1) / n_ranges + kStep - 1) / kStep * kStep;
    for (Index row = 0; row * width_ < n; ++row) {
      for (Index column = 0; column <= row; ++column) tiles_.push_back({row, column});
    }
    const Index fit = kPartialBytes / static_cast<Index>(sizeof(double)) / n / n;
    const Index most = std::min({fit, kTasks, n_blocks / kFewest});
    // A power of two, which threads share evenly.
    while (2 * n_parts_ <= most) n_parts_ *= 2;
  }

  Index n_parts() const { return n_parts_; }

  /// Calls `work(part, first_block, last_block, rows, columns, tile)` for each part and each tile,
  /// which it adds to; returns the parts' sums, n rows each, one below the other, undefined above
  /// their diagonals and in the columns from n on. A tile is on the diagonal where both ranges
  /// begin together.
  template <typename Work>
  Matrix<double> add_up(int n_threads, const Work& work) const {
    // Rows a little apart: a power of two apart they would lie on the same few lines of the cache.
    Matrix<double> sums = large_matrix(n_parts_ * n_, n_ + kPad);
    const auto n_tiles = static_cast<Index>(tiles_.size());
    parallel_for(n_parts_ * n_tiles, n_threads, [&](Index task) {
      const Index part = task / n_tiles;
      const auto [row, column] = tiles_[static_cast<std::size_t>(task % n_tiles)];
      const Range rows = range(row), columns = range(column);
      auto tile = sums.block(part * n_ + rows.begin, columns.begin, rows.size, columns.size);
      tile.setZero();
      work(part, part * n_blocks_ / n_parts_, (part + 1) * n_blocks_ / n_parts_, rows, columns,
           tile);
    });
    return sums;
  }

 private:
  static constexpr Index kPad = 8;

  struct Tile {
    Index row;
    Index column;
  };

  Range range(Index i) const { return {i * width_, std::min(width_, n_ - i * width_)}; }

  Index n_;
  Index n_blocks_;
  Index n_parts_ = 1;
  Index width_;
  std::vector<Tile> tiles_;
};

/// Copies the lower triangle of `c` (n, n) onto the upper one.
inline void mirror_lower(Matrix<double>& c) {
  constexpr Index kTile = 64;  // both triangles' tiles stay in the cache
  for (Index i = 0; i < c.rows(); i += kTile) {
    poll();
    const Index height = std::min(kTile, c.rows() - i);
    for (Index j = 0; j < i; j += kTile) {
      c.block(j, i, kTile, height) = c.block(i, j, height, kTile).transpose();
    }
    auto diagonal = c.block(i, i, height, height);
    diagonal.triangularView<Eigen::StrictlyUpper>() = diagonal.transpose();
  }
}

}  // namespace pydfm
