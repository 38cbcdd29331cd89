#include "linalg/secular.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pydfm {

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon() / 2;

// f at a point: the sums over the poles on either side, and their slopes (both positive).
struct Secular {
  double left, right, left_slope, right_slope;

  double f() const { return 1 + left + right; }
  double slope() const { return left_slope + right_slope; }
  double rounding() const { return 8 * kEps * (1 + std::abs(left) + std::abs(right)); }
};

class SecularFunction {
 public:
  // `split` is the number of poles to the left of the root's interval.
  SecularFunction(const VectorView<double>& poles, const VectorView<double>& weights, Index split)
      : poles_(poles), weights_(weights), split_(split), inverse_(poles.size()) {}

  Secular at(const SecularRoot& t) {
    const Index rest = poles_.size() - split_;
    inverse_ = t.gaps(poles_).inverse();
    terms_ = weights_.array() * inverse_;
    return {terms_.head(split_).sum(), terms_.tail(rest).sum(),
            (terms_ * inverse_).head(split_).sum(), (terms_ * inverse_).tail(rest).sum()};
  }

 private:
  const VectorView<double>& poles_;
  const VectorView<double>& weights_;
  Index split_;
  Eigen::ArrayXd inverse_, terms_;
};

// The root x of c + s / (p - x) + u / (q - x), p < q and s, u > 0, which lies between p and q, or
// to the right of both; as that of c x^2 - a x + b.
double fitted_root(double a, double b, double c, bool between) {
  const double root = std::sqrt(std::max(a * a - 4 * b * c, 0.0));
  if (c == 0) return b / a;
  if (between) return a <= 0 ? (a - root) / (2 * c) : 2 * b / (a + root);
  return a >= 0 ? (a + root) / (2 * c) : 2 * b / (a - root);
}

double middle(double low, double high) {
  // Brackets end at a pole, where offsets are of any order of magnitude.
  if (low > 0) return std::sqrt(low) * std::sqrt(high);
  if (high < 0) return -std::sqrt(-low) * std::sqrt(-high);
  return (low + high) / 2;
}

}  // namespace

SecularRoot secular_root(const VectorView<double>& poles, const VectorView<double>& weights,
                         Index j) {
  const Index n = poles.size();
  if (n == 1) return {0, weights[0]};

  const bool between = j + 1 < n;
  // The poles of the fit. To the right of all poles, the last one is kept apart from the others.
  const Index p = between ? j : n - 2;
  const Index q = p + 1;
  SecularFunction function(poles, weights, p + 1);

  // The middle of the interval tells which end is nearer, and gives the first fit: all terms but
  // those of p and q stay what they are there.
  SecularRoot t{between ? p : q, (between ? poles[q] - poles[p] : weights.sum()) / 2};
  double low = 0;
  double high = 2 * t.offset;
  Secular value = function.at(t);
  if (between && value.f() < 0) {
    t = {q, -t.offset};
    low = t.offset;
    high = 0;
  } else if (value.f() < 0) {
    low = t.offset;
  } else {
    high = t.offset;
  }
  {
    const double to_p = poles[p] - poles[t.origin];
    const double to_q = poles[q] - poles[t.origin];
    const double c = value.f() - weights[p] / (to_p - t.offset) - weights[q] / (to_q - t.offset);
    const double a = c * (to_p + to_q) + weights[p] + weights[q];
    const double b = c * to_p * to_q + weights[p] * to_q + weights[q] * to_p;
    const double guess = fitted_root(a, b, c, between);
    t.offset = guess > low && guess < high ? guess : middle(low, high);
  }

  // Halving alone ends within this many steps, whatever the order of magnitude of the offset.
  constexpr int kMaxSteps = 1200;
  double previous = std::numeric_limits<double>::infinity();
  for (int step = 0; step < kMaxSteps; ++step) {
    value = function.at(t);
    const double f = value.f();
    if (!(std::abs(f) > value.rounding())) break;
    (f < 0 ? low : high) = t.offset;

    const double to_p = (poles[p] - poles[t.origin]) - t.offset;
    const double to_q = (poles[q] - poles[t.origin]) - t.offset;
    const double c = f - to_p * value.left_slope - to_q * value.right_slope;
    const double a = (to_p + to_q) * f - to_p * to_q * value.slope();
    const double b = to_p * to_q * f;
    double next = t.offset + fitted_root(a, b, c, between);
    const bool slow = std::abs(f) > previous / 4 && step % 2 == 1;
    if (slow || !(next > low && next < high)) next = middle(low, high);
    if (next == t.offset || next == low || next == high) break;
    previous = std::abs(f);
    t.offset = next;
  }
  return t;
}

Deflation deflate(const VectorView<double>& d, const VectorView<double>& z, double rho,
                  double norm) {
  const Index n = d.size();
  Deflation result{d, z, {}, {}, {}};
  Vector<double>& values = result.values;
  Vector<double>& u = result.z;
  const double length = z.norm();
  const double size = n == 0 ? 0.0 : std::max(std::abs(d[0]), std::abs(d[n - 1]));
  const double tolerance = 16 * kEps * std::max({norm, size, rho * length * length});

  Index last = -1;  // the latest candidate, kept unless the next one is too close
  for (Index i = 0; i < n; ++i) {
    if (!(rho * length * std::abs(u[i]) > tolerance)) {
      u[i] = 0;
      result.deflated.push_back(i);
      continue;
    }
    if (last >= 0) {
      const double both = std::hypot(u[last], u[i]);
      const double c = u[i] / both;
      const double s = u[last] / both;
      const double gap = values[i] - values[last];
      if (std::abs(gap * c * s) <= tolerance) {
        result.rotations.push_back({i, last, c, s});
        u[i] = both;
        u[last] = 0;
        values[i] -= gap * s * s;
        values[last] += gap * s * s;
        result.deflated.push_back(last);
      } else {
        result.kept.push_back(last);
      }
    }
    last = i;
  }
  if (last >= 0) result.kept.push_back(last);
  return result;
}

}  // namespace pydfm
