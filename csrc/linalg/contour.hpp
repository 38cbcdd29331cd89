// A circle between two parts of a spectrum, and points on it for means of analytic functions.
#pragma once

#include "kernels/matrix.hpp"

namespace pydfm {

/// Nodes tau on the upper half of the circle |tau| = radius. For F that is real on the real axis
/// and analytic but for [0, low] and [high, inf), the mean of F over the circle is, to rounding,
///
///   sum_m weights_m Re F(tau_m),   tau_m = radius + real_m + i imag_m,
///
/// so that spectral sums over what lies within, or without, need no single eigenvalue:
///
///   mean of tau / (t - tau) = -1 for t in [0, low], 0 for t >= high,
///   mean of  1  / (t - tau) =  0 for t in [0, low], 1 / t for t >= high.
struct Circle {
  double radius;
  Vector<double> real,
      imag;                // (m,)  of tau - radius: no digit is lost where low and high are close
  Vector<double> weights;  // (m,)  positive, of sum 1
};

/// The circle for 0 < low < high.
///
/// With y = ln(tau / radius), radius = sqrt(low high), the plane without [0, low] and [high, inf)
/// is a strip around the imaginary axis of y, periodic in 2 pi i, slit along the real axis from
/// +-beta outwards, beta = ln(high / low) / 2. Jacobi's amplitude maps a plain strip onto it,
///
///   arg tau = pi - 2 am(u),   modulus 1 / cosh(beta / 2),   complementary modulus k' below,
///
/// and there nodes at equal distances (the trapezoidal rule) leave an error exp(-2 pi K' / step)
/// (Hale, Higham and Trefethen 2008 do the same between two other sets). m grows with the logarithm
/// of the relative gap only: 13 nodes for high = 2 low, 46 for 1.0001 low.
Circle separating_circle(double low, double high);

/// 1 / (values_i - tau_m) (n, 2 m) for real `values` (n,): real parts, then imaginary ones.
Matrix<double> resolvent(const VectorView<double>& values, const Circle& circle);

}  // namespace pydfm
