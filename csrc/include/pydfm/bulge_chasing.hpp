// Symmetric band matrices to tridiagonal form, and eigenvectors back.
#pragma once

#include "pydfm/band.hpp"
#include "pydfm/matrix.hpp"

namespace pydfm {

/// The reflectors H_si of all steps i of all sweeps s, in the order they were made. Those of some
/// sweeps at the same step lie side by side, each a row further down, and are applied at once; an
/// earlier step waits for the later one of the same sweeps, whose rows it shares.
class ChaseReflectors {
 public:
  explicit ChaseReflectors(Index n);

  /// Steps of a sweep: while there are rows to act on.
  Index steps(Index sweep) const { return (n_ - 1 - sweep + kBand - 1) / kBand; }

  /// Where the reflector's vector (kBand,), which is zero as yet, and its factor are kept.
  double* vector(Index sweep, Index step) {
    return vectors_.row(place(sweep, step)).data() + sweep % kSweeps;
  }
  double& factor(Index sweep, Index step) { return factors_[place(sweep, step)]; }

  /// rows = rows Q', that is: each row z of `rows` (k, n) becomes Q z, where Q is the product of
  /// the reflectors: 3 n^2 k multiplications and additions.
  void apply(Matrix<double>& rows, int n_threads) const;

 private:
  static constexpr Index kSweeps = 24;             // whose reflectors are applied together
  static constexpr Index kRows = kBand + kSweeps;  // of these, and one that is zero

  Index place(Index sweep, Index step) const {
    return (starts_[sweep / kSweeps] + step) * kSweeps + sweep % kSweeps;
  }

  Index n_;
  Eigen::Matrix<Index, Eigen::Dynamic, 1> starts_;  // groups before each kSweeps sweeps
  Vector<double> factors_;
  Matrix<double> vectors_;  // a row for each; all of a group from its first row on
};

/// B = Q T Q' with T tridiagonal.
struct ChasedBand {
  Vector<double> diagonal;      // (n,)
  Vector<double> off_diagonal;  // (n - 1,)
  ChaseReflectors reflectors;
};

/// Reduces the band matrix of `form`, in whose place it works: 6 n^2 kBand multiplications and
/// additions. Sweep s makes column s tridiagonal; that puts a bulge below the band, which the steps
/// of the sweep chase down (Schwarz 1968) block by block with reflectors of length kBand
/// (Murata and Horikoshi 1975), leaving what the next sweep does not meet. Threads take steps of
/// several sweeps at once, each two behind the sweep before (Lang 1993).
ChasedBand chase_bulges(BandForm& form, int n_threads);

}  // namespace pydfm
