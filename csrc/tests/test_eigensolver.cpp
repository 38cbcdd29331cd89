#include "linalg/eigensolver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/QR>

#include "check.hpp"
#include "linalg/tridiagonal.hpp"

namespace {

using pydfm::Eigenpairs;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::Vector;
using pydfm::view;
using pydfm::Wanted;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::check_throws;
using pydfm::testing::largest;
using pydfm::testing::normal;
using pydfm::testing::same;

Matrix<double> with_eigenvalues(const Vector<double>& values, unsigned seed) {
  const Index n = values.size();
  const Matrix<double> x = normal(n, n, seed);
  const Eigen::MatrixXd q = Eigen::HouseholderQR<Eigen::MatrixXd>(x).householderQ();
  const Matrix<double> a = q * values.asDiagonal() * q.transpose();
  return (a + a.transpose()) / 2;
}

Vector<double> ranks(Index n) { return Vector<double>::LinSpaced(n, 1, static_cast<double>(n)); }

struct Case {
  std::string name;
  Matrix<double> a;
  Vector<double> values;  // where known, in any order
};

std::vector<Case> cases() {
  std::vector<Case> all;
  // On both sides of the leaves' size, of the padding, of the panels and of the tiles.
  for (const Index n : {1, 2, 3, 8, 31, 32, 33, 48, 49, 50, 64, 65, 96, 97, 130, 193, 300}) {
    const std::string size = " " + std::to_string(n);
    const auto add = [&](const std::string& name, const Vector<double>& values) {
      all.push_back({name + size, with_eigenvalues(values, static_cast<unsigned>(n)), values});
      all.push_back({name + " diagonal" + size, values.asDiagonal(), values});
    };
    add("falling", ranks(n).array().pow(-1.3));
    add("clustered", 1 + 1e-13 * ranks(n).array());
    add("repeated", ranks(n).unaryExpr([](double r) { return std::fmod(r, 3.0) - 1; }));
    add("of both signs", ranks(n).array().sin());
    add("of rank one", ranks(n).unaryExpr([](double r) { return r == 1 ? 5.0 : 0.0; }));
    add("zero", Vector<double>::Zero(n));
    add("tiny", 1e-290 * ranks(n));
    add("huge", 1e290 * ranks(n));
    add("graded", (ranks(n).array() / static_cast<double>(n) * -690).exp());

    Matrix<double> random = normal(n, n, 7);
    random = (random + random.transpose()).eval();
    all.push_back({"random" + size, random, {}});
    Matrix<double> banded = random;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) banded(i, j) *= std::abs(i - j) <= 40;
    }
    all.push_back({"banded" + size, banded, {}});
    Matrix<double> tridiagonal = Matrix<double>::Zero(n, n);  // Wilkinson's, with close pairs
    tridiagonal.diagonal() = (ranks(n).array() - static_cast<double>(n + 1) / 2).abs();
    tridiagonal.diagonal(1).setOnes();
    tridiagonal.diagonal(-1).setOnes();
    all.push_back({"Wilkinson" + size, tridiagonal, {}});
    Matrix<double> graded = normal(n, n, 8);
    const Vector<double> scale = (ranks(n).array() * (-600.0 / static_cast<double>(n))).exp();
    graded = scale.asDiagonal() * (graded + graded.transpose()).eval() * scale.asDiagonal();
    all.push_back({"graded by rows" + size, graded, {}});
  }
  return all;
}

void check_pairs(const Case& c, const Eigenpairs& pairs, Index k) {
  const Index n = c.a.rows();
  const double size = largest(c.a) * static_cast<double>(n);
  const double scale = size > 0 ? 1 / size : 1;
  check(pairs.values.size() == n && pairs.vectors.rows() == k && pairs.vectors.cols() == n,
        c.name + ", shapes");
  check(n < 2 || (pairs.values.head(n - 1).array() >= pairs.values.tail(n - 1).array()).all(),
        c.name + ", descending");
  const Matrix<double> residual =
      pairs.vectors * (scale * c.a) - (scale * pairs.values.head(k)).asDiagonal() * pairs.vectors;
  check_at_most(largest(residual), 2e-14, c.name + ", residual");
  const Matrix<double> products = pairs.vectors * pairs.vectors.transpose();
  check_at_most(largest(products - Matrix<double>::Identity(k, k)), 2e-14,
                c.name + ", orthogonality");
  check_at_most(std::abs((pairs.values * scale).sum() - (c.a * scale).trace()), 2e-14,
                c.name + ", trace");
  if (c.values.size() == n) {
    Vector<double> expected = c.values;
    std::sort(expected.data(), expected.data() + n, [](double x, double y) { return x > y; });
    check_at_most(largest((pairs.values - expected) * scale), 2e-14, c.name + ", values");
  }
}

void eigenpairs_are_those_of_the_matrix() {
  for (const Case& c : cases()) {
    check_pairs(c, pydfm::eigh(view(c.a), {}, 2), c.a.rows());
  }
}

void leading_pairs_are_the_first_of_all() {
  for (const Case& c : cases()) {
    const Index n = c.a.rows();
    const Eigenpairs all = pydfm::eigh(view(c.a), {}, 1);
    for (const Index k : {Index{0}, Index{1}, n / 5, n - 1}) {
      const Eigenpairs some = pydfm::eigh(view(c.a), {k, 1.0}, 2);
      check_pairs(c, some, k);
      check(same(some.values, all.values), c.name + ", all values");
    }
    const Eigenpairs share = pydfm::eigh(view(c.a), {n, 0.9}, 2);
    check_pairs(c, share, share.vectors.rows());
  }
}

void a_share_takes_the_fewest_that_exceed_it() {
  Vector<double> values(5);
  values << 4, 3, 2, 1, -5;
  for (const auto& [share, k] : std::vector<std::pair<double, Index>>{
           {0.01, 1}, {0.39, 1}, {0.4, 2}, {0.69, 2}, {0.7, 3}, {0.95, 4}, {1.0, 5}}) {
    check(Wanted{5, share}.of(values) == k, "share " + std::to_string(share));
  }
  check(Wanted{2, 0.95}.of(values) == 2, "the smaller of count and share");
  check(Wanted{-1, 0.5}.of(values) == 0, "a negative count");
  check(Wanted{5, 0.5}.of(-values.head(4)) == 0, "no positive values");
}

void only_the_lower_triangle_is_read() {
  const Case c{"lower triangle", with_eigenvalues(ranks(50), 3), ranks(50)};
  Matrix<double> lower = c.a;
  lower.triangularView<Eigen::StrictlyUpper>().setConstant(77);
  check_pairs(c, pydfm::eigh(view(lower), {}, 1), 50);
}

void bits_do_not_depend_on_threads() {
  for (const Index n : {100, 300, 600}) {
    for (const double share : {1.0, 0.8}) {
      const Matrix<double> a = with_eigenvalues(ranks(n).array().pow(-1.1), 1);
      const Eigenpairs one = pydfm::eigh(view(a), {n, share}, 1);
      for (const int n_threads : {2, 3, 8}) {
        const Eigenpairs more = pydfm::eigh(view(a), {n, share}, n_threads);
        check(same(more.values, one.values) && same(more.vectors, one.vectors),
              "bits on " + std::to_string(n_threads) + " threads");
      }
    }
  }
}

void the_tridiagonal_form_is_similar_to_the_matrix() {
  for (const Index n : {1, 2, 33, 150}) {
    Matrix<double> a = normal(n, n, 9);
    a = (a + a.transpose()).eval();
    const pydfm::Tridiagonal t = pydfm::tridiagonalise(view(a), 0.5, 2);
    Matrix<double> form = Matrix<double>::Zero(n, n);
    form.diagonal() = t.diagonal;
    form.diagonal(1) = t.off_diagonal;
    form.diagonal(-1) = t.off_diagonal;
    Matrix<double> q = Matrix<double>::Identity(n, n);
    t.reflectors.apply(q, 2);  // row i is Q e_i
    check_at_most(largest(q.transpose() * form * q - 0.5 * a), 1e-13, "Q T Q'");
  }
}

void what_is_not_finite_raises() {
  for (const Index n : {1, 3, 100}) {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
      Matrix<double> a = Matrix<double>::Identity(n, n);
      a(n - 1, 0) = bad;
      check_throws<pydfm::EigensolverError>([&] { pydfm::eigh(view(a), {}, 2); }, "not finite");
    }
  }
}

void nothing_has_no_eigenpairs() {
  const Matrix<double> a(0, 0);
  const Eigenpairs pairs = pydfm::eigh(view(a), {}, 2);
  check(pairs.values.size() == 0 && pairs.vectors.size() == 0, "no rows");
}

}  // namespace

int main() {
  eigenpairs_are_those_of_the_matrix();
  leading_pairs_are_the_first_of_all();
  a_share_takes_the_fewest_that_exceed_it();
  only_the_lower_triangle_is_read();
  bits_do_not_depend_on_threads();
  the_tridiagonal_form_is_similar_to_the_matrix();
  what_is_not_finite_raises();
  nothing_has_no_eigenpairs();
  return pydfm::testing::result();
}
