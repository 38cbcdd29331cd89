#include "held_out/downdate.hpp"

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/matrix_products.hpp"
#include "linalg/contour.hpp"
#include "linalg/eigensolver.hpp"

namespace pydfm {

namespace {

using Complex = std::complex<double>;
using ComplexMatrix = Matrix<Complex>;

// Eigenvalues t_j closer than this, relatively, have no circle between them.
constexpr double kLeastGap = 1e-5;
// An eigenvalue counts as no nearer than this to where others are counted.
constexpr double kNearest = 1e-8;
// Pivots below this share of the matrix have lost too many digits.
constexpr double kLeastPivot = 1e-6;
// What a mean must be of the mean of its absolute values, each of which is exact to 1e-14.
constexpr double kLeastMean = 1e-4;

// Products of rows a <= b of `rows`, and of each row of `others` with all of `rows` and with
// itself.
Matrix<double> products_of(const Matrix<double>& rows, const Matrix<double>& others) {
  const Index m = rows.rows();
  const Index s = others.rows();
  Matrix<double> products(m * (m + 1) / 2 + s * (m + 1), rows.cols());
  Index next = 0;
  for (Index a = 0; a < m; ++a) {
    for (Index b = a; b < m; ++b) products.row(next++) = rows.row(a).cwiseProduct(rows.row(b));
  }
  for (Index i = 0; i < s; ++i) {
    for (Index a = 0; a < m; ++a) products.row(next++) = rows.row(a).cwiseProduct(others.row(i));
    products.row(next++) = others.row(i).cwiseAbs2();
  }
  return products;
}

// I - F from the products of the columns of U; `value(p)` is what the p-th adds up to.
template <typename Scalar, typename Value>
Matrix<Scalar> capacitance(Index m, const Value& value) {
  Matrix<Scalar> matrix(m, m);
  Index next = 0;
  for (Index a = 0; a < m; ++a) {
    for (Index b = a; b < m; ++b) {
      matrix(a, b) = matrix(b, a) = (a == b ? 1.0 : 0.0) - value(next++);
    }
  }
  return matrix;
}

// Solves a x = b for a symmetric matrix `a` (m, m) with a negative definite imaginary part, or a
// real positive definite one, by elimination with diagonal pivots: each pivot has a negative
// imaginary part again, so that the sum of their logarithms is the branch of ln det a that is
// continuous over all such matrices. `b` (m, s) becomes x. Nothing where digits are lost.
std::optional<Complex> solve(ComplexMatrix& a, ComplexMatrix& b) {
  const Index m = a.rows();
  const double least = kLeastPivot * a.cwiseAbs().maxCoeff();
  std::vector<Index> pivots;
  std::vector<bool> done(static_cast<std::size_t>(m), false);
  Complex logs = 0;
  for (Index step = 0; step < m; ++step) {
    Index pivot = -1;
    for (Index i = 0; i < m; ++i) {
      if (!done[i] && (pivot < 0 || std::norm(a(i, i)) > std::norm(a(pivot, pivot)))) pivot = i;
    }
    if (!(std::abs(a(pivot, pivot)) > least)) return std::nullopt;
    done[pivot] = true;
    pivots.push_back(pivot);
    logs += std::log(a(pivot, pivot));
    for (Index i = 0; i < m; ++i) {
      if (done[i]) continue;
      const Complex factor = a(i, pivot) / a(pivot, pivot);
      for (Index j = 0; j < m; ++j) {
        if (!done[j]) a(i, j) -= factor * a(pivot, j);
      }
      b.row(i) -= factor * b.row(pivot);
    }
  }
  // Row pivots[i] of the triangle has the columns pivots[i], pivots[i + 1], ...
  for (Index i = m - 1; i >= 0; --i) {
    const Index p = pivots[i];
    for (Index j = i + 1; j < m; ++j) b.row(p) -= a(p, pivots[j]) * b.row(pivots[j]);
    b.row(p) /= a(p, p);
  }
  return logs;
}

}  // namespace

Downdate::Downdate(const VectorView<double>& eigenvalues, const Matrix<double>& update)
    : eigenvalues_(eigenvalues),
      update_(update),
      squares_(products_of(update, Matrix<double>(0, update.cols()))) {}

Index Downdate::count(double x) const {
  const Index m = update_.rows();
  Vector<double> gaps = eigenvalues_.array() - x;
  for (double& gap : gaps) {
    if (std::abs(gap) < kNearest * x) gap = std::copysign(kNearest * x, gap);
  }
  const Vector<double> sums = squares_ * gaps.cwiseInverse();
  const auto matrix = capacitance<double>(m, [&](Index p) { return sums[p]; });
  const Vector<double> values = eigh(view(matrix), {0}, 1).values;
  return (gaps.array() > 0).count() + (values.array() > 0).count() - m;
}

double Downdate::largest(double zero) const {
  // t_1 lies between eigenvalues 1 and 1 + m.
  const Index m = update_.rows();
  double low = std::max(m < eigenvalues_.size() ? eigenvalues_[m] : 0.0, zero);
  double high = eigenvalues_[0];
  while (high - low > 1e-10 * high) {
    const double middle = (low + high) / 2;
    (count(middle) > 0 ? low : high) = middle;
  }
  return high;
}

std::optional<Downdate::Gap> Downdate::gap(Index k, double zero, bool rest_is_zero) const {
  // Between eigenvalues k + 1 + m, or `zero`, and k: t_{k+1} >= below, t_k <= above.
  const Index m = update_.rows();
  double below =
      rest_is_zero || k + m >= eigenvalues_.size() ? zero : std::max(eigenvalues_[k + m], zero);
  double above = eigenvalues_[k - 1];
  const auto middle = [](double a, double b) { return std::sqrt(a) * std::sqrt(b); };
  double low = below;
  if (!rest_is_zero) {
    // Where exactly k are above.
    for (;;) {
      if (above < (1 + kLeastGap) * below) return std::nullopt;
      low = middle(below, above);
      const Index found = count(low);
      if (found == k) break;
      (found > k ? below : above) = low;
    }
  }
  // Out to where they end but for a quarter of the gap, of which a factor of two is enough: it is
  // the upper end that loses no digits where what is below is zero.
  double high = low;
  const auto open = [&](double from, double to) {
    const double width = std::min(std::log(high / low), std::log(2.0));
    return to > (1 + kLeastGap / 8) * from && std::log(to / from) > width / 4;
  };
  while (open(high, above)) {
    const double x = middle(high, above);
    (count(x) == k ? high : above) = x;
  }
  while (high < 2 * low && open(below, low)) {
    const double x = middle(below, low);
    (count(x) == k ? low : below) = x;
  }
  low = std::max(low, high / 2);
  if (high < (1 + kLeastGap) * low) return std::nullopt;
  return Gap{low, high};
}

std::optional<SpectralSums> Downdate::sums(const Matrix<double>& rows, Index k, Index most,
                                           double zero, bool residuals) const {
  const Index r = eigenvalues_.size();
  const Index m = update_.rows();
  const Index s = rows.rows();
  const Index positive = count(zero);
  const Index rank = std::min(positive, most);
  k = std::min(k, rank);
  if (k <= 0) return std::nullopt;

  // Of all r components the means are values at zero, a circle of one node.
  Circle circle{0, Vector<double>::Zero(1), Vector<double>::Zero(1), Vector<double>::Ones(1)};
  Index inside = r;  // eigenvalues from this one on are within the circle
  if (k < r) {
    const std::optional<Gap> gap = this->gap(k, zero, k == positive);
    if (!gap) return std::nullopt;
    circle = separating_circle(gap->low, gap->high);
    inside = (eigenvalues_.array() > gap->low).count();
  }
  const Index n_nodes = circle.weights.size();
  const Matrix<double> resolvent = pydfm::resolvent(eigenvalues_, circle);
  const Matrix<double> values = product(products_of(update_, rows), resolvent);

  SpectralSums sums{k, 0, 0, Vector<double>::Zero(s), Vector<double>::Zero(s), {}};
  Vector<double> residual_size = Vector<double>::Zero(s), precision_size = Vector<double>::Zero(s);
  double shrinkage = 0, shrinkage_size = 0;
  Matrix<double> factors(residuals ? 1 + m * s : 0, 2 * n_nodes);
  for (Index node = 0; node < n_nodes; ++node) {
    const auto value = [&](Index p) { return Complex(values(p, node), values(p, n_nodes + node)); };
    const Complex tau(circle.radius + circle.real[node], circle.imag[node]);
    const double weight = circle.weights[node];
    ComplexMatrix matrix = capacitance<Complex>(m, value);
    ComplexMatrix b(m, s);
    const Index first = m * (m + 1) / 2;
    for (Index i = 0; i < s; ++i) {
      for (Index a = 0; a < m; ++a) b(a, i) = value(first + i * (m + 1) + a);
    }
    ComplexMatrix x = b;
    const std::optional<Complex> log_det = solve(matrix, x);
    if (!log_det) return std::nullopt;
    for (Index i = 0; i < s; ++i) {
      Complex h = value(first + i * (m + 1) + m);
      for (Index a = 0; a < m; ++a) h += b(a, i) * x(a, i);
      sums.residual[i] -= weight * (tau * h).real();
      sums.precision[i] += weight * h.real();
      residual_size[i] += weight * std::abs(tau * h);
      precision_size[i] += weight * std::abs(h);
    }
    // Eigenvalues in the gap are taken to zero, which is within.
    Complex logs = *log_det;
    for (Index j = k; j < inside; ++j) logs += std::log(1.0 - eigenvalues_[j] / tau);
    sums.logs += weight * logs.real();
    shrinkage += weight * (tau * logs).real();
    shrinkage_size += weight * std::abs(tau * logs);
    if (residuals) {
      const auto set = [&](Index row, const Complex& factor) {
        factors(row, node) = -weight * factor.real();
        factors(row, n_nodes + node) = weight * factor.imag();
      };
      set(0, tau);
      for (Index i = 0; i < s; ++i) {
        for (Index a = 0; a < m; ++a) set(1 + i * m + a, tau * x(a, i));
      }
    }
  }
  const double rest = eigenvalues_.tail(r - inside).sum();
  sums.logs += eigenvalues_.head(k).array().log().sum();
  sums.rest = k == rank ? 0 : rest - shrinkage;
  const bool all = k == r;
  const bool certain =
      (all || (sums.residual.array() > kLeastMean * residual_size.array()).all()) &&
      (sums.precision.array() > kLeastMean * precision_size.array()).all() &&
      (k == rank || sums.rest > kLeastMean * (rest + shrinkage_size));
  if (!certain) return std::nullopt;
  if (all) sums.residual.setZero();
  if (residuals) {
    const Matrix<double> shares = product(factors, resolvent.transpose());
    sums.residuals = rows.array().rowwise() * shares.row(0).array();
    for (Index i = 0; i < s; ++i) {
      sums.residuals.row(i) +=
          update_.cwiseProduct(shares.middleRows(1 + i * m, m)).colwise().sum();
    }
    if (all) sums.residuals.setZero();
  }
  return sums;
}

}  // namespace pydfm
