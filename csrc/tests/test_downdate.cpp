#include "held_out/downdate.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>

#include "check.hpp"

namespace {

using pydfm::Downdate;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::SpectralSums;
using pydfm::Vector;
using pydfm::view;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::largest;
using pydfm::testing::normal;

struct Problem {
  std::string name;
  Vector<double> e;        // eigenvalues (r,), descending
  Matrix<double> u, rows;  // (m, r), (s, r)

  // Of r values and m of n rows in r directions, whose scatter is diag(e).
  Problem(std::string what, Vector<double> values, Index n, Index m, unsigned seed)
      : name(what + ", " + std::to_string(m) + " of " + std::to_string(n)), e(std::move(values)) {
    const Index r = e.size();
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(normal(n, r, seed));
    const Eigen::MatrixXd white = qr.householderQ() * Eigen::MatrixXd::Identity(n, r);
    u = white.topRows(m) * e.cwiseSqrt().asDiagonal();
    rows = normal(2, r, seed + 1) * e.cwiseSqrt().asDiagonal();
    rows.row(0) = u.row(0);
  }

  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solve() const {
    Eigen::MatrixXd matrix = e.asDiagonal();
    return Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(matrix - u.transpose() * u);
  }
};

std::vector<Problem> problems() {
  std::vector<Problem> all;
  unsigned seed = 0;
  const Index r = 40;
  const Vector<double> ranks = Vector<double>::LinSpaced(r, 1, static_cast<double>(r));
  Vector<double> levels = Vector<double>::Constant(r, 1e-3);
  levels.head(r / 2).setOnes();
  for (const Index m : {1, 2, 5}) {
    for (const Index n : {r, Index{100}}) {
      all.push_back({"power", ranks.cwiseInverse(), n, m, ++seed});
      // Each is the geometric mean of two others: where is counted may be an eigenvalue.
      all.push_back({"powers of two", Eigen::pow(2.0, (-ranks / 2).array()), n, m, ++seed});
      all.push_back({"flat", 1 + 0.01 * ranks.reverse().array(), n, m, ++seed});
      all.push_back({"two levels", levels, n, m, ++seed});
    }
  }
  return all;
}

void eigenvalues_are_counted() {
  for (const Problem& p : problems()) {
    const Vector<double> t = p.solve().eigenvalues().reverse();
    const Downdate downdate(view(p.e), p.u);
    for (Index j = 0; j + 1 < t.size(); ++j) {
      if (t[j + 1] < 1e-10 || t[j] - t[j + 1] < 1e-6 * t[j]) continue;
      for (const double part : {0.01, 0.5, 0.99}) {
        const double x = t[j + 1] + part * (t[j] - t[j + 1]);
        check(downdate.count(x) == j + 1, p.name + ", count " + std::to_string(j + 1));
      }
    }
    for (const double value : p.e) {
      const auto above = (t.array() > value).count();
      const auto close = ((t.array() - value).abs() < 1e-6 * value).count();
      check(std::abs(downdate.count(value) - above) <= close, p.name + ", count at an eigenvalue");
    }
    check_at_most(std::abs(downdate.largest(1e-14) - t[0]), 2e-10 * t[0], p.name + ", largest");
  }
}

void sums_are_those_over_the_eigenpairs() {
  Index found = 0, asked = 0;
  for (const Problem& p : problems()) {
    const auto solver = p.solve();
    const Index r = p.e.size();
    const Vector<double> t = solver.eigenvalues().reverse();
    const Matrix<double> coordinates = p.rows * solver.eigenvectors().rowwise().reverse();
    const double zero = 1e-12;
    const Index rank = (t.array() > zero).count();
    const Downdate downdate(view(p.e), p.u);
    for (Index k = 1; k <= r; ++k) {
      const auto sums = downdate.sums(p.rows, k, r, zero, true);
      const Index left = std::min(k, rank);
      // Between equal ones there is no cut.
      const bool apart = left == rank || t[left - 1] - t[left] > 1e-4 * t[left - 1];
      asked += apart;
      if (!sums) continue;
      found += apart;
      const std::string what = p.name + ", k = " + std::to_string(k);
      check(sums->k == left, what + ", components");
      const double logs = t.head(left).array().log().sum();
      check_at_most(std::abs(sums->logs - logs), 1e-9 * (1 + std::abs(logs)), what + ", logs");
      const double rest = left == rank ? 0 : t.segment(left, rank - left).sum();
      check_at_most(std::abs(sums->rest - rest), 1e-9 * rest, what + ", rest");
      const Vector<double> residual = coordinates.rightCols(r - left).rowwise().squaredNorm();
      check_at_most(largest(sums->residual - residual), 1e-9 * largest(residual) + 1e-24,
                    what + ", residual");
      const Vector<double> precision =
          coordinates.leftCols(left).cwiseAbs2() * t.head(left).cwiseInverse();
      check_at_most(largest(sums->precision - precision), 1e-9 * largest(precision),
                    what + ", precision");
      const Matrix<double> residuals =
          coordinates.rightCols(r - left) *
          solver.eigenvectors().leftCols(r - left).rowwise().reverse().transpose();
      check_at_most(largest(sums->residuals - residuals), 1e-9 * largest(p.rows),
                    what + ", residuals");
    }
  }
  // Not all: some sums are too small.
  check(4 * found > 3 * asked, std::to_string(found) + " of " + std::to_string(asked));
}

void there_are_no_sums_where_they_are_not_certain() {
  // The cut is between equal eigenvalues, for all that three rows change.
  Problem equal("equal", Vector<double>::Ones(20), 100, 3, 1);
  check(!Downdate(view(equal.e), equal.u).sums(equal.rows, 5, 20, 1e-14, false), "equal");
  // A row within the subspace has no residual.
  Problem within("within", Vector<double>::LinSpaced(20, 2, 1), 100, 3, 2);
  within.e.tail(10) *= 0.1;
  within.u.rightCols(10).setZero();
  within.rows.rightCols(10).setZero();
  check(!Downdate(view(within.e), within.u).sums(within.rows, 10, 20, 1e-14, false), "within");
  // No degree of freedom is left.
  check(!Downdate(view(within.e), within.u).sums(within.rows, 10, 0, 1e-14, false), "nothing left");
}

}  // namespace

int main() {
  eigenvalues_are_counted();
  sums_are_those_over_the_eigenpairs();
  there_are_no_sums_where_they_are_not_certain();
  return pydfm::testing::result();
}
