#include "linalg/contour.hpp"

#include <cmath>
#include <vector>

namespace pydfm {

namespace {

constexpr double kPi = 3.14159265358979323846;

// Jacobi's elliptic functions of one modulus, by Gauss's arithmetic-geometric mean (Abramowitz and
// Stegun 16.4). `complement` is k' = sqrt(1 - k^2), in (0, 1].
class EllipticFunctions {
 public:
  struct Values {
    double sn, cn, dn;
  };

  explicit EllipticFunctions(double complement) : complement_(complement), mean_(1) {
    double geometric = complement;
    double half_difference = std::sqrt((1 - complement) * (1 + complement));
    // Convergence is quadratic: the next one would be below rounding.
    while (half_difference > 1e-8 * mean_) {
      half_difference = (mean_ - geometric) / 2;
      const double next = (mean_ + geometric) / 2;
      geometric = std::sqrt(mean_ * geometric);
      mean_ = next;
      ratios_.push_back(half_difference / mean_);
    }
  }

  // The quarter period K.
  double quarter() const { return kPi / (2 * mean_); }

  Values at(double u) const {
    double phi = std::ldexp(mean_ * u, static_cast<int>(ratios_.size()));
    for (auto ratio = ratios_.rbegin(); ratio != ratios_.rend(); ++ratio) {
      phi = (phi + std::asin(*ratio * std::sin(phi))) / 2;
    }
    const double sn = std::sin(phi);
    const double cn = std::cos(phi);
    return {sn, cn, std::hypot(cn, complement_ * sn)};
  }

 private:
  double complement_, mean_;
  std::vector<double> ratios_;
};

}  // namespace

Circle separating_circle(double low, double high) {
  const double beta = std::log1p((high - low) / low) / 2;
  const double complement = std::tanh(beta / 2);
  const EllipticFunctions elliptic(complement);
  const double quarter = elliptic.quarter();
  const double other_quarter = EllipticFunctions(1 / std::cosh(beta / 2)).quarter();

  constexpr double kLogError = 37;  // exp(-37) = 1e-16
  const auto n = static_cast<Index>(std::ceil(kLogError * quarter / (2 * kPi * other_quarter))) + 1;
  const double step = quarter / static_cast<double>(n);
  Circle circle{std::sqrt(low) * std::sqrt(high), Vector<double>(n), Vector<double>(n),
                Vector<double>(n)};
  for (Index m = 0; m < n; ++m) {
    // From the gap, where the nodes crowd, to the negative axis. cn is exact near 0 only; what the
    // shift by a quarter period makes of the functions serves the nodes that are close to the gap.
    const double u = (static_cast<double>(m) + 0.5) * step;
    double sine, cosine, slope;  // of half the angle, and of the angle by u
    if (2 * u < quarter) {
      const auto [sn, cn, dn] = elliptic.at(u);
      sine = complement * sn / dn;
      cosine = cn / dn;
      slope = 2 * complement / dn;
    } else {
      const auto [sn, cn, dn] = elliptic.at(quarter - u);
      sine = cn;
      cosine = sn;
      slope = 2 * dn;
    }
    circle.real[m] = -2 * circle.radius * sine * sine;
    circle.imag[m] = 2 * circle.radius * sine * cosine;
    circle.weights[m] = slope * step / kPi;
  }
  return circle;
}

Matrix<double> resolvent(const VectorView<double>& values, const Circle& circle) {
  const Index m = circle.weights.size();
  Matrix<double> result(values.size(), 2 * m);
  for (Index i = 0; i < values.size(); ++i) {
    for (Index node = 0; node < m; ++node) {
      const double real = (values[i] - circle.radius) - circle.real[node];
      const double imag = circle.imag[node];
      const double square = real * real + imag * imag;
      result(i, node) = real / square;
      result(i, m + node) = imag / square;
    }
  }
  return result;
}

}  // namespace pydfm
