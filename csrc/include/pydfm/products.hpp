// Sums of symmetric products A A' over many blocks A: half the work of general products, spread
// over threads in tasks that share nothing but what they read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "pydfm/matrix.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

/// lower(c) += lower(a a') in rows [begin, begin + height) of `c` (n, n), for `a` (n, m); what is
/// above c's diagonal is undefined.
template <typename Derived>
void add_lower_products(const Eigen::MatrixBase<Derived>& a, Index begin, Index height,
                        Matrix<double>& c) {
  const auto rows = a.middleRows(begin, height);
  c.block(begin, 0, height, begin).noalias() += rows * a.topRows(begin).transpose();
  c.block(begin, begin, height, height).template triangularView<Eigen::Lower>() +=
      rows * rows.transpose();
}

/// How a sum of products over `n_blocks` blocks into an n x n matrix is cut into tasks: runs of
/// blocks, each with a partial sum of its own, times strips of rows of the lower triangle. Shapes
/// alone decide, so that results do not depend on the number of threads.
class ProductTasks {
 public:
  ProductTasks(Index n, Index n_blocks) : n_blocks_(n_blocks) {
    constexpr Index kPartialBytes = Index{64} << 20;  // of all partial sums, unless there is one
    constexpr Index kTasks = 8;
    constexpr Index kFewest = 8;  // blocks, for which a partial sum pays
    constexpr Index kStep = 32;   // strips end at multiples of this: at whole vectors
    const Index fit = kPartialBytes / static_cast<Index>(sizeof(double)) / n / n;
    n_parts_ = std::max<Index>(std::min({fit, kTasks, n_blocks / kFewest}), 1);
    const Index n_strips = kTasks / n_parts_;
    bounds_.push_back(0);
    for (Index i = 1; i <= n_strips; ++i) {  // of about equal area
      const double share = static_cast<double>(i) / static_cast<double>(n_strips);
      const auto bound = static_cast<Index>(static_cast<double>(n) * std::sqrt(share));
      const Index rounded = std::min((bound + kStep - 1) / kStep * kStep, n);
      if (rounded > bounds_.back()) bounds_.push_back(rounded);
    }
  }

  Index n_parts() const { return n_parts_; }

  /// Calls `work(part, first_block, last_block, begin, end)` for each part and the rows
  /// [begin, end) of each strip.
  template <typename Work>
  void run(int n_threads, const Work& work) const {
    const Index n_strips = static_cast<Index>(bounds_.size()) - 1;
    parallel_for(n_parts_ * n_strips, n_threads, [&](Index task) {
      const Index part = task / n_strips;
      const auto strip = static_cast<std::size_t>(task % n_strips);
      work(part, part * n_blocks_ / n_parts_, (part + 1) * n_blocks_ / n_parts_, bounds_[strip],
           bounds_[strip + 1]);
    });
  }

 private:
  Index n_blocks_;
  Index n_parts_;
  std::vector<Index> bounds_;
};

/// Copies the lower triangle of `c` (n, n) onto the upper one.
inline void mirror_lower(Matrix<double>& c) {
  constexpr Index kTile = 64;  // both triangles' tiles stay in the cache
  for (Index i = 0; i < c.rows(); i += kTile) {
    const Index height = std::min(kTile, c.rows() - i);
    for (Index j = 0; j < i; j += kTile) {
      c.block(j, i, kTile, height) = c.block(i, j, height, kTile).transpose();
    }
    auto diagonal = c.block(i, i, height, height);
    diagonal.triangularView<Eigen::StrictlyUpper>() = diagonal.transpose();
  }
}

}  // namespace pydfm
