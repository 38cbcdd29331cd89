// Symmetric matrices to band form.
#pragma once

#include "pydfm/matrix.hpp"
#include "pydfm/reflectors.hpp"

namespace pydfm {

/// Diagonals below the main one that a band has.
constexpr Index kBand = 48;

/// A = Q B Q' with B a band matrix and Q a product of Householder reflectors.
struct BandForm {
  Index n;
  /// Entry (i, j) of B, i >= j, at (i - j, j). Zeros follow, of which bulge chasing takes as many
  /// rows and columns as a step needs that begins within B.
  Eigen::MatrixXd band;
  Reflectors reflectors;
};

/// Reduces scale * `a` (n, n), of which the lower triangle is read: 4/3 n^3 multiplications and
/// additions, all in matrix products (Bischof, Lang and Sun 2000). Columns are taken kBand at a
/// time: what is below the band becomes triangular by Q = I - V F V', and the rest A becomes
///
///   Q' A Q = A - V W' - W V',    W = A V F - 1/2 V F' V' A V F
BandForm reduce_to_band(const MatrixView<double>& a, double scale, int n_threads);

}  // namespace pydfm
