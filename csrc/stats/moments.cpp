#include "stats/moments.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/packed_products.hpp"
#include "kernels/symmetric_sum.hpp"

namespace pydfm {

namespace {

// Rows of a block of moments, columns of one of a Gram matrix: few enough that a tile's share of
// it, packed, stays in the second-level cache.
constexpr Index kBlock = 128;

// Mean of max(128, n / 64) rows, evenly spaced, or of all.
Vector<double> rough_mean(const RowsView& rows) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  const Index count = std::min(n, std::max<Index>(128, n / 64));
  Vector<double> mean = Vector<double>::Zero(d);
  rows.visit([&](const auto* first) {
    // Less the first row, so that the mean of equal rows is that row.
    for (Index i = 0; i < count; ++i) {
      const auto* const row = first + i * n / count * d;
      for (Index p = 0; p < d; ++p) {
        mean[p] += static_cast<double>(row[p]) - static_cast<double>(first[p]);
      }
    }
    for (Index p = 0; p < d; ++p) {
      mean[p] = static_cast<double>(first[p]) + mean[p] / static_cast<double>(count);
    }
  });
  return mean;
}

// Mean of each of `count` columns of `rows` from `first` on, less the first row's value.
void column_means(const RowsView& rows, Index first, Index count, double* means) {
  std::fill_n(means, count, 0.0);
  rows.visit([&](const auto* data) {
    const auto* const shift = data + first;
    for (Index i = 0; i < rows.rows(); ++i) {
      const auto* const row = shift + i * rows.cols();
      for (Index p = 0; p < count; ++p) {
        means[p] += static_cast<double>(row[p]) - static_cast<double>(shift[p]);
      }
    }
  });
  for (Index p = 0; p < count; ++p) means[p] /= static_cast<double>(rows.rows());
}

// Packs `count` columns from `first` on of the rows in `range`, less the first row and `means`. The
// first row goes first: near the others, it leaves numbers of the size of their spread, so that a
// large offset costs no digits.
void pack_columns(const RowsView& rows, Range range, Index first, Index count, const double* means,
                  Packed& packed) {
  Matrix<double> panel = Matrix<double>::Zero(Packed::kWidth, packed.depth());
  rows.visit([&](const auto* data) {
    const auto* const shift = data + first;
    for (Index i = 0; i < range.size; i += Packed::kWidth) {
      const Index height = std::min(Packed::kWidth, range.size - i);
      for (Index r = 0; r < height; ++r) {
        const auto* const row = shift + (range.begin + i + r) * rows.cols();
        double* const to = panel.row(r).data();
        for (Index p = 0; p < count; ++p) {
          to[p] = static_cast<double>(row[p]) - static_cast<double>(shift[p]) - means[p];
        }
      }
      packed.set_panel(i / Packed::kWidth, panel);
    }
  });
}

// lower(c) += weight a a' in rows [begin, begin + height).
void add_lower_outer(const Vector<double>& a, double weight, Index begin, Index height,
                     Matrix<double>& c) {
  for (Index i = begin; i < begin + height; ++i) {
    const double scale = weight * a[i];
    double* const row = c.row(i).data();
    for (Index j = 0; j < begin + height; ++j) row[j] += scale * a[j];
  }
}

}  // namespace

Moments moments(const RowsView& rows, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  if (n < 1) throw std::invalid_argument("rows is empty: moments need at least one row");

  const Index n_blocks = (n + kBlock - 1) / kBlock;
  const Index most = (n + n_blocks - 1) / n_blocks;  // rows of a block: as many or one less
  const SymmetricSum sum(d, n_blocks);
  const Vector<double> shift = rough_mean(rows);
  std::vector<Vector<double>> totals(static_cast<std::size_t>(sum.n_parts()),
                                     Vector<double>::Zero(d));
  const Matrix<double> parts = sum.add_up(
      n_threads, [&](Index p, Index first, Index last, Range height, Range width, auto& tile) {
        const bool diagonal = height.begin == width.begin;
        auto total = totals[static_cast<std::size_t>(p)].segment(height.begin, height.size);
        Packed left(height.size, most), right(diagonal ? 0 : width.size, most);
        const auto pack = [&](Packed& packed, Index b, Index column) {
          const Index begin = b * n / n_blocks;
          const Index count = (b + 1) * n / n_blocks - begin;
          rows.visit([&](const auto* data) {
            const auto* const block = data + begin * d + column;
            for (Index i = 0; i < count; ++i) {
              packed.set_element(i, block + i * d, shift.data() + column);
            }
          });
          if (count < most) packed.clear_element(count);
        };
        for (Index b = first; b < last; ++b) {
          poll();
          pack(left, b, height.begin);
          if (diagonal) {
            total += left.sums();
            add_products(left, left, Entries::kLower, tile);
          } else {
            pack(right, b, width.begin);
            add_products(left, right, Entries::kAll, tile);
          }
        }
      });

  Vector<double> step = totals.front();
  for (std::size_t i = 1; i < totals.size(); ++i) step += totals[i];
  step /= static_cast<double>(n);
  Moments all{n, shift + step, large_matrix(d, d)};
  constexpr Index kHeight = 64;
  parallel_blocks(d, kHeight, n_threads, [&](Index begin, Index height) {
    auto all_rows = all.scatter.block(begin, 0, height, begin + height);
    all_rows = parts.block(begin, 0, height, begin + height);
    for (Index i = 1; i < sum.n_parts(); ++i) {
      all_rows += parts.block(i * d + begin, 0, height, begin + height);
    }
    add_lower_outer(step, -static_cast<double>(n), begin, height, all.scatter);
  });
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
    const double* const of_a = a.scatter.data() + i * d;
    const double* const of_b = b.scatter.data() + i * d;
    double* const of_both = both.scatter.data() + i * d;
    for (Index j = 0; j < d; ++j) of_both[j] = of_a[j] + of_b[j] + step[i] * step[j];
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
  Moments rest{count, a.mean + (n_b / n) * (a.mean - b.mean), large_matrix(d, d)};
  const Vector<double> step =
      std::sqrt(n * n_b / static_cast<double>(a.count)) * (b.mean - rest.mean);
  for (Index i = 0; i < d; ++i) {
    if (i % kBlock == 0) poll();
    const double* const of_a = a.scatter.data() + i * d;
    const double* const of_b = b.scatter.data() + i * d;
    double* const of_rest = rest.scatter.data() + i * d;
    for (Index j = 0; j < d; ++j) of_rest[j] = of_a[j] - of_b[j] - step[i] * step[j];
  }
  const double rounding =
      static_cast<double>(a.count + d) * std::numeric_limits<double>::epsilon() *
      (a.scatter.trace() + static_cast<double>(a.count) * std::numeric_limits<double>::epsilon() *
                               a.mean.squaredNorm());
  if ((rest.scatter.diagonal().array() < -rounding).any()) {
    throw std::invalid_argument(
        "a without b has a negative variance; b's rows must be among those of a");
  }
  return rest;
}

Gram gram(const RowsView& rows, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  if (n < 1) throw std::invalid_argument("rows is empty: a Gram matrix needs at least one row");

  // Blocks are of columns: the mean of a column needs no other.
  const SymmetricSum sum(n, (d + kBlock - 1) / kBlock);
  Gram result{Vector<double>(d), {}};
  const Matrix<double> sums = sum.add_up(
      n_threads, [&](Index, Index first, Index last, Range height, Range width, auto& tile) {
        const bool diagonal = height.begin == width.begin;
        Packed left(height.size, kBlock), right(diagonal ? 0 : width.size, kBlock);
        Vector<double> means(kBlock);
        for (Index b = first; b < last; ++b) {
          poll();
          const Index column = b * kBlock, count = std::min(kBlock, d - column);
          column_means(rows, column, count, means.data());
          pack_columns(rows, height, column, count, means.data(), left);
          if (diagonal) {
            add_products(left, left, Entries::kLower, tile);
          } else {
            pack_columns(rows, width, column, count, means.data(), right);
            add_products(left, right, Entries::kAll, tile);
          }
          if (diagonal && height.begin == 0) {
            rows.visit([&](const auto* first_row) {
              for (Index p = 0; p < count; ++p) {
                result.mean[column + p] = static_cast<double>(first_row[column + p]) + means[p];
              }
            });
          }
        }
      });
  result.gram = sums.topLeftCorner(n, n);
  for (Index i = 1; i < sum.n_parts(); ++i) result.gram += sums.block(i * n, 0, n, n);
  mirror_lower(result.gram);
  return result;
}

Matrix<double> components_from_gram(const RowsView& rows, const VectorView<double>& mean,
                                    const VectorView<double>& values,
                                    const MatrixView<double>& vectors, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  const Index k = vectors.rows();
  Packed scaled(k, n);
  for (Index i = 0; i < k; i += Packed::kWidth) {
    poll();
    const Index count = std::min(Packed::kWidth, k - i);
    Matrix<double> panel = Matrix<double>::Zero(Packed::kWidth, n);
    for (Index row = 0; row < count; ++row) {
      const double scale = 1 / std::sqrt(values[i + row]);
      for (Index p = 0; p < n; ++p) panel(row, p) = scale * vectors(i + row, p);
    }
    scaled.set_panel(i / Packed::kWidth, panel);
  }
  Matrix<double> components = large_matrix(k, d);
  constexpr Index kColumns = 96;  // with the rows' values in float64 they stay in the cache
  parallel_blocks(d, kColumns, n_threads, [&](Index begin, Index count) {
    Packed centred(count, n);
    rows.visit([&](const auto* data) {
      for (Index i = 0; i < n; ++i) {
        centred.set_element(i, data + i * d + begin, mean.data() + begin);
      }
    });
    // In one piece: the components' rows may lie a power of two apart, on the same few lines of the
    // cache.
    Matrix<double> columns = Matrix<double>::Zero(k, count);
    add_products(scaled, centred, Entries::kAll, columns);
    components.middleCols(begin, count) = columns;
  });
  return components;
}

}  // namespace pydfm
