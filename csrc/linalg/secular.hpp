// Eigenvalues of a diagonal matrix plus a rank-one one: the secular equation.
#pragma once

#include <vector>

#include "kernels/matrix.hpp"

namespace pydfm {

/// A root t of a secular equation, held so that no difference poles[i] - t loses a digit:
/// t = poles[origin] + offset, where poles[origin] is the nearest pole.
struct SecularRoot {
  Index origin;
  double offset;

  /// poles - t, each to full relative accuracy.
  template <typename Poles>
  auto gaps(const Poles& poles) const {
    return (poles.array() - poles[origin]) - offset;
  }
  template <typename Poles>
  double value(const Poles& poles) const {
    return poles[origin] + offset;
  }
};

/// Root j of
///
///   f(t) = 1 + sum_i weights_i / (poles_i - t),
///
/// for strictly ascending `poles` (n,) and positive `weights` (n,). With weights = rho z_i^2 the n
/// roots are the eigenvalues of diag(poles) + rho z z'. Root j lies between poles j and j + 1, the
/// last one in (poles_{n-1}, poles_{n-1} + sum weights]. (Eigenvalues of diag(d) - rho z z' are the
/// negated roots for the poles -d.)
///
/// f is fitted by c + s / (p - t) + u / (q - t), with poles p and q of its own, and the root of the
/// fit taken as the next guess (the middle way of Li 1993, LAPACK working note 89), inside a
/// bracket that is halved where this does not do. Ends where |f| is within rounding. Cost n
/// divisions per step, four to six steps as a rule.
///
/// Poles and weights should be deflated (see below), or so scaled that weights / gaps^2 does not
/// overflow. What is not finite gives a root that is not, but never hangs.
SecularRoot secular_root(const VectorView<double>& poles, const VectorView<double>& weights,
                         Index j);

/// Turns (v_first, v_second) into (c v_first + s v_second, c v_second - s v_first).
struct PlaneRotation {
  Index first, second;
  double c, s;
};

/// diag(d) + rho z z' without what its eigenvalues do not feel.
///
/// With all rotations applied in turn to z (and to the eigenvectors that belong to d), the matrix
/// is, but for rounding, diagonal in the rows and columns `deflated`, where its eigenvalues are
/// values[deflated]; and in those of `kept` it is diag(values[kept]) + rho z[kept] z[kept]', with
/// nonzero z and values strictly ascending.
struct Deflation {
  Vector<double> values;  // (n,)
  Vector<double> z;       // (n,)  zero where deflated
  std::vector<Index> kept, deflated;
  std::vector<PlaneRotation> rotations;
};

/// Deflates diag(d) + rho z z' for ascending `d` (n,), `z` (n,) and rho >= 0: z_i is dropped where
/// it is too small to matter, and of two values too close to tell apart one is freed of z by a
/// rotation; each to within 8 eps max(norm, |d|, rho |z|^2) (Dongarra and Sorensen 1987), where
/// `norm` is that of a larger matrix this one is a part of.
Deflation deflate(const VectorView<double>& d, const VectorView<double>& z, double rho,
                  double norm = 0);

}  // namespace pydfm
