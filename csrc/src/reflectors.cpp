#include "pydfm/reflectors.hpp"

#include <algorithm>
#include <vector>

#include "pydfm/parallel.hpp"

namespace pydfm {

namespace {

using ColumnMajor = Eigen::MatrixXd;

// Reflectors applied at once.
constexpr Index kBlock = 64;

}  // namespace

ColumnMajor block_factor(const Eigen::Ref<const ColumnMajor>& vectors,
                         const Eigen::Ref<const Vector<double>>& factors) {
  const Index n = vectors.cols();
  const ColumnMajor products = vectors.transpose() * vectors;
  ColumnMajor f = ColumnMajor::Zero(n, n);
  for (Index i = 0; i < n; ++i) {
    f(i, i) = factors[i];
    f.col(i).head(i).noalias() = f.topLeftCorner(i, i).triangularView<Eigen::Upper>() *
                                 products.col(i).head(i) * -factors[i];
  }
  return f;
}

void Reflectors::apply(Matrix<double>& rows, int n_threads) const {
  const Index n = rows.cols();
  const Index n_blocks = (factors.size() + kBlock - 1) / kBlock;
  const auto width = [&](Index b) { return std::min(kBlock, factors.size() - b * kBlock); };
  const auto block = [&](Index b) {
    const Index row = b * kBlock + offset;
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
      products.noalias() = v.transpose() * part;
      scaled.noalias() = block_factors[b] * products;
      part.noalias() -= v * scaled;
    }
  });
}

}  // namespace pydfm
