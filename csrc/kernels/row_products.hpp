// Products of a tile of rows with the components of a subspace, at the speed of the processor's
// multipliers: in float32 for all rows, in float64 for those that need it.
//
// Eigen's general product packs both its factors at every call; here the components are packed once
// per model, and the rows not at all: they are read where centring has put them. A sum over p is
// taken in the same order for every row, whichever rows are beside it, so that a row's product does
// not depend on its batch.
#pragma once

#include "kernels/matrix.hpp"

namespace pydfm {

/// Rows to a strip: their sums with one panel fill the registers, but for what the factors need.
constexpr Index kStripRows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 12 : 6;
/// Features to a slice: a strip of rows stays in the first cache while every panel passes by.
constexpr Index kSliceFeatures = 256;
/// Rows lie a little farther apart than a power of two, which would put them on the same cache
/// sets.
constexpr Index kRowStride = kSliceFeatures + 16;
/// Features to a run: what is summed up in one register before it is added to the rest. Short runs
/// keep rounding errors small.
constexpr Index kRunFeatures = 64;

/// Components (k, d) as the product reads them: slice by slice of the features; in each, panels of
/// as many components as fill two registers, the last perhaps one; in each, feature by feature. A
/// slice lies in one piece, since panels a power of two apart would share the same cache sets.
class Panels {
 public:
  explicit Panels(const MatrixView<double>& components);

  /// Length of a row of products: k, and zeros up to a whole number of registers.
  Index width() const { return width_; }

  /// z (n_rows, width()) += v * W, for a strip of rows, 0 < n_rows <= kStripRows, and the slice of
  /// features that begins at `first`, a multiple of kSliceFeatures. Rows of v are kRowStride apart.
  void add_products(const float* v, Index n_rows, Index first, double* z) const;

 private:
  Index features_;
  Index width_;
  Vector<float> data_;
};

/// z (n_rows, k) += v (n_rows, depth) * w (k, depth)', in float64; rows lie `_stride` apart.
void add_exact_products(const double* v, Index v_stride, Index n_rows, const double* w,
                        Index w_stride, Index k, Index depth, double* z);

}  // namespace pydfm
