#include "linalg/secular.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include <Eigen/Eigenvalues>
#include <Eigen/Jacobi>

#include "check.hpp"

namespace {

using pydfm::Deflation;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::SecularRoot;
using pydfm::Vector;
using pydfm::view;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::largest;
using pydfm::testing::normal;
using pydfm::testing::same;

struct Update {
  std::string name;
  Vector<double> d, z;
  double rho;
};

Vector<double> sorted(Vector<double> values) {
  std::sort(values.data(), values.data() + values.size());
  return values;
}

std::vector<Update> updates() {
  std::vector<Update> all;
  unsigned seed = 0;
  for (const Index n : {1, 2, 3, 10, 150}) {
    const Vector<double> x = normal(n, 1, ++seed), z = normal(n, 1, ++seed);
    const Vector<double> ranks = Vector<double>::LinSpaced(n, 1, static_cast<double>(n));
    const Vector<double> zero = Vector<double>::Zero(n);
    const Vector<double> powers = (-x.array().abs() * 10).exp();
    const std::string size = " of " + std::to_string(n);
    all.push_back({"random" + size, sorted(x), z, 0.7});
    all.push_back({"evenly spaced" + size, ranks, z, 1.0});
    all.push_back({"falling" + size, sorted(ranks.array().pow(-1.2)), z, 1e-3});
    all.push_back({"large change" + size, sorted(x), z, 1e6});
    all.push_back({"small change" + size, sorted(x), z, 1e-13});
    all.push_back({"graded" + size, sorted(powers), z, 1e-5});
    all.push_back({"graded weights" + size, sorted(x), z.cwiseProduct(powers), 2.0});
    all.push_back({"clustered" + size, sorted(1 + 1e-12 * x.array()), z, 1.0});
    all.push_back({"equal" + size, Vector<double>::Ones(n), z, 1.0});
    all.push_back({"zero" + size, zero, z, 1.0});
    all.push_back({"no change" + size, sorted(x), zero, 1.0});
    all.push_back({"nothing at all" + size, zero, zero, 0.0});
  }
  return all;
}

void deflated_equations_have_the_eigenvalues_of_the_matrix() {
  for (const Update& u : updates()) {
    const Index n = u.d.size();
    Eigen::MatrixXd matrix = u.rho * u.z * u.z.transpose();
    matrix.diagonal() += u.d;
    const double size = largest(u.d) + u.rho * u.z.squaredNorm();

    const Deflation f = pydfm::deflate(view(u.d), view(u.z), u.rho);
    check(static_cast<Index>(f.kept.size() + f.deflated.size()) == n, u.name + ", every index");

    // The rotations, applied to the matrix, give what the deflation says is left of it.
    Eigen::MatrixXd rotated = matrix;
    for (const pydfm::PlaneRotation& r : f.rotations) {
      const Eigen::JacobiRotation<double> rotation(r.c, -r.s);
      rotated.applyOnTheRight(r.first, r.second, rotation);
      rotated.applyOnTheLeft(r.first, r.second, rotation.transpose());
    }
    Eigen::MatrixXd left = u.rho * f.z * f.z.transpose();
    left.diagonal() += f.values;
    const double many = static_cast<double>(n);
    check_at_most(largest(rotated - left), 4e-15 * many * size, u.name + ", deflated matrix");

    const Vector<double> poles = f.values(f.kept);
    const Vector<double> weights = u.rho * f.z(f.kept).array().square();
    check((weights.array() > 0).all(), u.name + ", positive weights");
    const Index m = poles.size();
    check(m < 2 || (poles.tail(m - 1).array() > poles.head(m - 1).array()).all(),
          u.name + ", ascending poles");

    Vector<double> found(n);
    found.tail(n - m) = f.values(f.deflated);
    for (Index j = 0; j < m; ++j) {
      const SecularRoot t = pydfm::secular_root(view(poles), view(weights), j);
      const Eigen::ArrayXd gaps = t.gaps(poles);
      found[j] = t.value(poles);
      check((gaps.head(j + 1) < 0).all() && (gaps.tail(m - j - 1) > 0).all(),
            u.name + ", interlacing");
      const Eigen::ArrayXd terms = weights.array() / gaps;
      check_at_most(std::abs(1 + terms.sum()), 1e-14 * (1 + terms.abs().sum()),
                    u.name + ", equation");
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(matrix, Eigen::EigenvaluesOnly);
    check_at_most(largest(sorted(found) - solver.eigenvalues()), 4e-15 * many * size,
                  u.name + ", eigenvalues");
  }
}

void roots_are_known_where_a_formula_is() {
  // 1 + w / (d - t) = 0
  const Vector<double> pole = Vector<double>::Constant(1, 3.0);
  const Vector<double> weight = Vector<double>::Constant(1, 0.25);
  check(pydfm::secular_root(view(pole), view(weight), 0).value(pole) == 3.25, "one pole");

  // Poles -1 and 1 with weights w: t^2 - 2 w t - 1 = 0, so t = w -+ sqrt(w^2 + 1).
  Vector<double> poles(2), weights(2);
  poles << -1, 1;
  weights << 1e-20, 1e-20;
  const SecularRoot low = pydfm::secular_root(view(poles), view(weights), 0);
  const SecularRoot high = pydfm::secular_root(view(poles), view(weights), 1);
  // Offsets far below the poles' own rounding are found to full relative accuracy.
  check(low.origin == 0 && high.origin == 1, "the nearest poles");
  check_at_most(std::abs(low.offset / 1e-20 - 1), 1e-15, "offset of the lower root");
  check_at_most(std::abs(high.offset / 1e-20 - 1), 1e-15, "offset of the upper root");
}

void what_is_not_finite_does_not_hang() {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    for (const Index where : {0, 4, 9}) {
      Vector<double> poles = Vector<double>::LinSpaced(10, 0, 1);
      Vector<double> weights = Vector<double>::Ones(10);
      (where == 4 ? poles : weights)[where] = bad;
      for (Index j = 0; j < 10; ++j) pydfm::secular_root(view(poles), view(weights), j);
    }
  }
}

}  // namespace

int main() {
  deflated_equations_have_the_eigenvalues_of_the_matrix();
  roots_are_known_where_a_formula_is();
  what_is_not_finite_does_not_hang();
  return pydfm::testing::result();
}
