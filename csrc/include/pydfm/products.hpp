// Matrix products in float64, spread over threads by fixed blocks of the result.
#pragma once

#include <algorithm>

#include "pydfm/matrix.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

/// lower(c) += lower(a a') for `a` (n, m) and `c` (n, n); what is above c's diagonal is undefined.
template <typename Derived>
void add_lower_products(const Eigen::MatrixBase<Derived>& a, Matrix<double>& c, int n_threads) {
  constexpr Index kBlock = 128;
  const Index n = a.rows();
  const Index n_blocks = (n + kBlock - 1) / kBlock;
  parallel_for(n_blocks * (n_blocks + 1) / 2, n_threads, [&](Index task) {
    Index row = 0;  // tasks count the blocks of the lower triangle row by row
    while ((row + 1) * (row + 2) / 2 <= task) ++row;
    const Index i = row * kBlock;
    const Index j = (task - row * (row + 1) / 2) * kBlock;
    const Index height = std::min(kBlock, n - i);
    const Index width = std::min(kBlock, n - j);
    c.block(i, j, height, width).noalias() +=
        a.middleRows(i, height) * a.middleRows(j, width).transpose();
  });
}

/// Copies the lower triangle of `c` (n, n) onto the upper one.
inline void mirror_lower(Matrix<double>& c) {
  c.triangularView<Eigen::StrictlyUpper>() = c.transpose();
}

}  // namespace pydfm
