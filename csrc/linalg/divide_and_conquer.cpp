#include "linalg/divide_and_conquer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include <Eigen/Eigenvalues>

#include "kernels/matrix_products.hpp"
#include "linalg/secular.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

using ColumnMajor = Eigen::MatrixXd;
using Columns = Eigen::Map<ColumnMajor>;
using Indices = std::vector<Index>;

// Blocks up to this size are solved by QR sweeps.
constexpr Index kLeaf = 32;
// Up to this size, threads take whole merges; beyond, they share each one.
constexpr Index kSmall = 256;

Index size(const Indices& indices) { return static_cast<Index>(indices.size()); }

Vector<double> take(const Vector<double>& values, const Indices& indices) {
  Vector<double> taken(size(indices));
  for (Index i = 0; i < taken.size(); ++i) taken[i] = values[indices[i]];
  return taken;
}

// Indices of values in ascending order, of equal ones the first first.
Indices ascending(const double* values, Index n) {
  Indices order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](Index i, Index j) { return values[i] < values[j]; });
  return order;
}

std::vector<SecularRoot> secular_roots(const Vector<double>& poles, const Vector<double>& weights,
                                       int n_threads) {
  std::vector<SecularRoot> roots(static_cast<std::size_t>(poles.size()));
  parallel_blocks(poles.size(), 16, n_threads, [&](Index first, Index count) {
    for (Index j = first; j < first + count; ++j) {
      roots[j] = secular_root(view(poles), view(weights), j);
    }
  });
  return roots;
}

// |z| of the matrix diag(poles) + z z' whose eigenvalues are exactly `roots` (Loewner's formula):
//
//   z_i^2 = prod_j (t_j - d_i) / prod_{j != i} (d_j - d_i)
Vector<double> weights_of_roots(const Vector<double>& poles, const std::vector<SecularRoot>& roots,
                                int n_threads) {
  Vector<double> z(poles.size());
  parallel_blocks(poles.size(), 64, n_threads, [&](Index first, Index count) {
    const auto d = poles.segment(first, count).array();
    Eigen::ArrayXd product = Eigen::ArrayXd::Ones(count);
    Eigen::ArrayXd distance(count);
    for (Index j = 0; j < poles.size(); ++j) {
      const SecularRoot& t = roots[j];
      distance = d - poles[j];
      if (j >= first && j < first + count) distance[j - first] = 1;
      product *= ((d - poles[t.origin]) - t.offset) / distance;
    }
    z.segment(first, count) = product.abs().sqrt();
  });
  return z;
}

// Eigenvalues, ascending, of the blocks [bounds[i], bounds[i + 1]) of a matrix that has been torn
// there; in the same rows and columns of `vectors` their eigenvectors.
struct Torn {
  double norm;
  Vector<double> values;
  ColumnMajor vectors;
};

void solve_leaf(const Vector<double>& diagonal, const Vector<double>& off_diagonal, Index first,
                Index last, Torn& torn) {
  const Index n = last - first;
  Eigen::SelfAdjointEigenSolver<ColumnMajor> solver;
  solver.computeFromTridiagonal(diagonal.segment(first, n), off_diagonal.segment(first, n - 1));
  if (solver.info() != Eigen::Success) {
    throw EigensolverError("the eigenvalue iteration did not converge");
  }
  torn.values.segment(first, n) = solver.eigenvalues();
  torn.vectors.block(first, first, n, n) = solver.eigenvectors();
}

// Two neighbouring blocks of a torn matrix and the entry `e` between them: eigenpairs of the whole.
class Merge {
 public:
  Merge(Torn& torn, Index first, Index middle, Index last, double e, int n_threads)
      : torn_(torn),
        first_(first),
        n_(last - first),
        n_left_(middle - first),
        n_threads_(n_threads),
        vectors_(torn.vectors.block(first, first, n_, n_)) {
    // diag(left, right) + |e| z z' in the basis of the blocks' vectors, by ascending values.
    Vector<double> z(n_);
    for (Index i = 0; i < n_left_; ++i) z[i] = vectors_(n_left_ - 1, i);
    for (Index i = n_left_; i < n_; ++i) z[i] = std::copysign(1.0, e) * vectors_(n_left_, i);
    const Vector<double> values = torn.values.segment(first, n_);
    order_ = ascending(values.data(), n_);
    const Vector<double> sorted = take(values, order_);
    const Vector<double> sorted_z = take(z, order_);
    deflation_ = deflate(view(sorted), view(sorted_z), std::abs(e), torn.norm);

    poles_ = take(deflation_.values, deflation_.kept);
    Vector<double> weights = take(deflation_.z, deflation_.kept);
    for (double& weight : weights) weight = std::abs(e) * (weight * weight);
    roots_ = secular_roots(poles_, weights, n_threads_);

    // Roots first, then deflated values: whence the i-th smallest eigenvalue comes.
    Vector<double> found(n_);
    for (Index j = 0; j < poles_.size(); ++j) {
      found[j] = roots_[j].value(poles_);
    }
    found.tail(size(deflation_.deflated)) = take(deflation_.values, deflation_.deflated);
    sources_ = ascending(found.data(), n_);
    values_ = take(found, sources_);
  }

  const Vector<double>& values() const { return values_; }

  // Puts eigenvalues and vectors in the blocks' place.
  void in_place() {
    torn_.values.segment(first_, n_) = values_;
    Indices columns(static_cast<std::size_t>(n_));
    std::iota(columns.begin(), columns.end(), Index{0});
    form(columns, vectors_);
  }

  // The last columns.size() eigenvectors, ascending, become those columns of `target` (n, k).
  void form(const Indices& columns, Eigen::Ref<ColumnMajor> target) {
    rotate();

    const Indices& kept = deflation_.kept;
    const Index n_kept = size(kept);
    // Columns that are zero in the right half, in neither, in the left: each half of the product
    // needs two of these groups only.
    Indices rows;
    Index group_ends[3];
    for (const int side : {kLeft, kBoth, kRight}) {
      for (Index i = 0; i < n_kept; ++i) {
        if (sides_[kept[i]] == side) {
          rows.push_back(i);
        }
      }
      group_ends[side] = size(rows);
    }
    const Index n_upper = group_ends[kBoth];
    const Index skipped = group_ends[kLeft];
    const Index n_lower = n_kept - skipped;
    ColumnMajor upper(n_left_, n_upper);
    ColumnMajor lower(n_ - n_left_, n_lower);
    parallel_blocks(n_kept, 64, n_threads_, [&](Index first, Index count) {
      for (Index i = first; i < first + count; ++i) {
        const auto column = vectors_.col(column_of(kept[rows[i]]));
        if (i < n_upper) upper.col(i) = column.head(n_left_);
        if (i >= skipped) lower.col(i - skipped) = column.tail(n_ - n_left_);
      }
    });

    Indices roots, root_columns, deflated, deflated_columns;
    const Index leave = n_ - size(columns);
    for (Index i = leave; i < n_; ++i) {
      const Index source = sources_[i];
      const Index column = columns[i - leave];
      if (source < n_kept) {
        roots.push_back(source);
        root_columns.push_back(column);
      } else {
        deflated.push_back(deflation_.deflated[source - n_kept]);
        deflated_columns.push_back(column);
      }
    }
    ColumnMajor unchanged(n_, size(deflated));
    for (Index i = 0; i < size(deflated); ++i) {
      unchanged.col(i) = vectors_.col(column_of(deflated[i]));
    }

    const ColumnMajor inner = inner_vectors(roots, rows);
    constexpr Index kColumns = 128;
    const Index n_blocks = (size(roots) + kColumns - 1) / kColumns;
    parallel_for(2 * n_blocks, n_threads_, [&](Index task) {
      const Index begin = task / 2 * kColumns;
      const Index count = std::min(kColumns, size(roots) - begin);
      const auto copy = [&](const ColumnMajor& tile, Index row) {
        for (Index i = 0; i < count; ++i) {
          target.col(root_columns[begin + i]).segment(row, tile.rows()) = tile.col(i);
        }
      };
      if (task % 2 == 0) {
        copy(product<ColumnMajor>(upper, inner.block(0, begin, n_upper, count)), 0);
      } else {
        copy(product<ColumnMajor>(lower, inner.block(skipped, begin, n_lower, count)), n_left_);
      }
    });
    for (Index i = 0; i < size(deflated); ++i) {
      target.col(deflated_columns[i]) = unchanged.col(i);
    }
  }

 private:
  enum Side { kLeft, kBoth, kRight };

  Index column_of(Index sorted) const { return order_[sorted]; }

  void rotate() {
    sides_.resize(static_cast<std::size_t>(n_));
    for (Index i = 0; i < n_; ++i) {
      sides_[i] = column_of(i) < n_left_ ? kLeft : kRight;
    }
    for (const PlaneRotation& r : deflation_.rotations) {
      vectors_.applyOnTheRight(column_of(r.first), column_of(r.second),
                               Eigen::JacobiRotation<double>(r.c, -r.s));
      Side& one = sides_[r.first];
      Side& other = sides_[r.second];
      if (one != other) one = other = kBoth;
    }
  }

  // Unit eigenvectors, in the basis of the kept columns taken in the order `rows`, for the `wanted`
  // roots: z_i / (d_i - t).
  ColumnMajor inner_vectors(const Indices& wanted, const Indices& rows) const {
    Vector<double> z = weights_of_roots(poles_, roots_, n_threads_);
    for (Index i = 0; i < z.size(); ++i) {
      z[i] = std::copysign(z[i], deflation_.z[deflation_.kept[i]]);
    }
    ColumnMajor inner(z.size(), size(wanted));
    parallel_blocks(size(wanted), 16, n_threads_, [&](Index first, Index count) {
      Vector<double> vector(z.size());
      for (Index j = first; j < first + count; ++j) {
        const SecularRoot& t = roots_[wanted[j]];
        vector = z.array() / t.gaps(poles_);
        vector.normalize();
        inner.col(j) = take(vector, rows);
      }
    });
    return inner;
  }

  Torn& torn_;
  Index first_, n_, n_left_;
  int n_threads_;
  Eigen::Block<ColumnMajor> vectors_;
  Indices order_;  // columns by ascending values
  Deflation deflation_;
  Vector<double> poles_;
  std::vector<SecularRoot> roots_;
  Indices sources_;
  Vector<double> values_;
  std::vector<Side> sides_;
};

}  // namespace

Eigenpairs divide_and_conquer(const Vector<double>& diagonal, const Vector<double>& off_diagonal,
                              const Wanted& wanted, int n_threads) {
  const Index n = diagonal.size();
  Eigenpairs pairs{Vector<double>(n), Matrix<double>(0, n)};
  if (n == 0) return pairs;

  Index n_leaves = 1;
  while ((n + n_leaves - 1) / n_leaves > kLeaf) n_leaves *= 2;
  const auto bound = [&](Index block, Index n_blocks) { return block * n / n_blocks; };
  Vector<double> torn_diagonal = diagonal;
  for (Index i = 1; i < n_leaves; ++i) {
    const Index cut = bound(i, n_leaves);
    torn_diagonal.segment(cut - 1, 2).array() -= std::abs(off_diagonal[cut - 1]);
  }

  Torn torn{diagonal.cwiseAbs().maxCoeff(), Vector<double>(n), ColumnMajor::Zero(n, n)};
  if (n > 1) torn.norm = std::max(torn.norm, off_diagonal.cwiseAbs().maxCoeff());
  parallel_for(n_leaves, n > kSmall ? n_threads : 1, [&](Index leaf) {
    solve_leaf(torn_diagonal, off_diagonal, bound(leaf, n_leaves), bound(leaf + 1, n_leaves), torn);
  });

  const auto merge = [&](Index block, Index n_blocks, int threads) {
    const Index middle = bound(2 * block + 1, 2 * n_blocks);
    return Merge(torn, bound(block, n_blocks), middle, bound(block + 1, n_blocks),
                 off_diagonal[middle - 1], threads);
  };
  for (Index n_blocks = n_leaves / 2; n_blocks > 1; n_blocks /= 2) {
    const bool all_small = n / n_blocks <= kSmall;
    parallel_for(n_blocks, all_small ? n_threads : 1, [&](Index block) {
      merge(block, n_blocks, all_small ? 1 : n_threads).in_place();
    });
  }

  if (n_leaves == 1) {
    pairs.values = torn.values.reverse();
    pairs.vectors = torn.vectors.rowwise().reverse().leftCols(wanted.of(pairs.values)).transpose();
    return pairs;
  }
  Merge last = merge(0, 1, n_threads);
  pairs.values = last.values().reverse();
  const Index k = wanted.of(pairs.values);
  pairs.vectors.resize(k, n);
  Indices columns(static_cast<std::size_t>(k));
  std::iota(columns.rbegin(), columns.rend(), Index{0});
  last.form(columns, Columns(pairs.vectors.data(), n, k));
  return pairs;
}

}  // namespace pydfm
