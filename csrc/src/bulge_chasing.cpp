#include "pydfm/bulge_chasing.hpp"

#include <algorithm>
#include <utility>

#include <Eigen/Householder>

#include "pydfm/memory.hpp"
#include "pydfm/packed_products.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

namespace {

using ColumnMajor = Eigen::MatrixXd;
// Of a size known to the compiler, which keeps columns in registers.
using Column = Eigen::Matrix<double, kBand, 1>;
using Square =
    Eigen::Map<Eigen::Matrix<double, kBand, kBand>, Eigen::Unaligned, Eigen::OuterStride<>>;

// Makes the reflector H of `column`, which becomes a multiple of e_1.
void reflect(Eigen::Ref<Column> column, Column& v, double& factor) {
  double beta = 0;
  Eigen::Matrix<double, kBand - 1, 1> essential;
  column.makeHouseholder(essential, factor, beta);
  v << 1, essential;
  column.setZero();
  column[0] = beta;
}

}  // namespace

ChaseReflectors::ChaseReflectors(Index n) : n_(n) {
  const Index n_sweeps = std::max<Index>(n - 1, 0);
  const Index n_groups = (n_sweeps + kSweeps - 1) / kSweeps;
  starts_.setZero(n_groups + 1);
  for (Index g = 0; g < n_groups; ++g) starts_[g + 1] = starts_[g] + steps(g * kSweeps);
  factors_.setZero(starts_[n_groups] * kSweeps);
  vectors_ = large_matrix(factors_.size(), kRows);
  vectors_.setZero();
}

void ChaseReflectors::apply(Matrix<double>& rows, int n_threads) const {
  // The products of the groups' reflectors are I - V (V F')'.
  Matrix<double> scaled = large_matrix(vectors_.rows(), kRows);
  parallel_for(factors_.size() / kSweeps, n_threads, [&](Index group) {
    const auto v = vectors_.middleRows(group * kSweeps, kSweeps);
    const ColumnMajor f = block_factor(v.transpose(), factors_.segment(group * kSweeps, kSweeps));
    scaled.middleRows(group * kSweeps, kSweeps).noalias() = -f.transpose() * v;
  });

  constexpr Index kVectors = 104;
  constexpr Index kWidth = Packed::kWidth;
  parallel_blocks(rows.rows(), kVectors, n_threads, [&](Index first, Index count) {
    // Padded so that every group has all of its rows.
    Matrix<double> z = Matrix<double>::Zero(kVectors, n_ + kRows);
    z.topLeftCorner(count, n_) = rows.middleRows(first, count);
    Packed part(kVectors, kRows), products(kVectors, kSweeps);
    Packed v(kSweeps, kRows), w(kRows, kSweeps);
    Matrix<double> sums(kVectors, kSweeps);
    for (Index sweeps = starts_.size() - 2; sweeps >= 0; --sweeps) {
      for (Index step = 0; step < starts_[sweeps + 1] - starts_[sweeps]; ++step) {
        const Index row = sweeps * kSweeps + 1 + step * kBand;
        const Index group = (starts_[sweeps] + step) * kSweeps;
        for (Index i = 0; i < v.panels(); ++i) {
          v.set_panel(i, vectors_.middleRows(group + i * kWidth, kWidth));
        }
        for (Index p = 0; p < kSweeps; ++p) w.set_element(p, scaled.row(group + p).transpose());
        for (Index i = 0; i < part.panels(); ++i) {
          part.set_panel(i, z.block(i * kWidth, row, kWidth, kRows));
        }
        sums.setZero();
        add_products(part, v, Entries::kAll, sums);
        for (Index i = 0; i < products.panels(); ++i) {
          products.set_panel(i, sums.middleRows(i * kWidth, kWidth));
        }
        add_products(products, w, Entries::kAll, z.middleCols(row, kRows));
      }
    }
    rows.middleRows(first, count) = z.topLeftCorner(count, n_);
  });
}

ChasedBand chase_bulges(BandForm& form, int n_threads) {
  const Index n = form.n;
  const Index n_sweeps = std::max<Index>(n - 1, 0);
  ColumnMajor& band = form.band;
  ChaseReflectors reflectors(n);

  const auto square = [&](Index row, Index column) {
    return Square(&band(row - column, column), Eigen::OuterStride<>(band.outerStride() - 1));
  };
  const auto run = [&](Index sweep, Index step) {
    const Index row = sweep + 1 + step * kBand;
    double& factor = reflectors.factor(sweep, step);
    Column v;
    if (step == 0) {
      reflect(Eigen::Map<Column>(&band(1, sweep)), v, factor);
    } else {
      // The reflector of the step before, from the right, fills the square below its own; a new
      // one, from the left, clears the first column of that.
      const Column u = Eigen::Map<const Column>(reflectors.vector(sweep, step - 1));
      auto below = square(row, row - kBand);
      Column w;
      w.noalias() = below * u;
      w *= reflectors.factor(sweep, step - 1);
      below.col(0) -= w;  // u begins with one
      reflect(below.col(0), v, factor);
      for (Index j = 1; j < kBand; ++j) {
        const Column column = below.col(j) - u[j] * w;
        below.col(j) = column - (factor * column.dot(v)) * v;
      }
    }
    Eigen::Map<Column>(reflectors.vector(sweep, step)) = v;
    if (factor == 0) return;
    auto diagonal = square(row, row).selfadjointView<Eigen::Lower>();
    Column w;
    w.noalias() = diagonal * v;
    w *= factor;
    w -= (factor / 2 * w.dot(v)) * v;
    diagonal.rankUpdate(v, w, -1);
  };

  // Step i of a sweep follows step i - 1, and step i + 1 of the sweep before: in wave 2 s + i.
  Team team(n_threads);
  const Index n_waves = n_sweeps == 0 ? 0 : 2 * n_sweeps + reflectors.steps(0);
  for (Index wave = 0; wave < n_waves; ++wave) {
    const Index last = std::min(wave / 2, n_sweeps - 1);
    Index first = last + 1;
    while (first > 0 && wave - 2 * (first - 1) < reflectors.steps(first - 1)) --first;
    team.run(last + 1 - first, [&](Index task) { run(first + task, wave - 2 * (first + task)); });
  }
  return {band.row(0).head(n).transpose(), band.row(1).head(n_sweeps).transpose(),
          std::move(reflectors)};
}

}  // namespace pydfm
