// Rows less a centre, and their products with components, for a tile of rows at a time.
#pragma once

#include <algorithm>

#include "kernels/matrix.hpp"
#include "kernels/row_products.hpp"

namespace pydfm {

/// Rows to a tile, a whole number of strips: enough to pay for reading the components once.
constexpr Index kTileRows = 288;

/// Values of |v|^2 at which the squares of single features come near the ends of float32.
constexpr double kLeastEnergy = 1e-28;
constexpr double kMostEnergy = 1e36;

/// With v = x - centre: |v|^2 and W'v, with products in float32. What a row gives does not depend
/// on the rows beside it. Reads the memory that `centre` views, which must outlive it.
class Projection {
 public:
  Projection(const VectorView<double>& centre, const MatrixView<double>& components);

  Index features() const { return centre_.size(); }

  /// Length of a row of products: the number of components, and zeros after them.
  Index width() const { return panels_.width(); }

  /// What a thread keeps from one call to the next.
  struct Tile {
    explicit Tile(Index n_rows)
        : strip(kStripRows, kRowStride), totals(std::min(n_rows, kTileRows)) {}

    Matrix<float> strip;       // a slice of some centred rows
    Vector<double> totals;     // |v|^2, (count,)
    Vector<double> projected;  // W'v, (count, width)
  };

  /// Writes totals and projected of the rows `which` of `rows`, at most as many as `tile` was made
  /// for.
  void project(const RowsView& rows, const Index* which, Index count, Tile& tile) const;

 private:
  double subtract_centre(const float* row, Index begin, Index depth, float* v) const;
  double subtract_centre(const double* row, Index begin, Index depth, float* v) const;

  VectorView<double> centre_;
  Panels panels_;
  Vector<float> mean_;       // (d,)  the centre, rounded
  Vector<float> mean_rest_;  // (d,)  what rounding took from it
};

/// A bound on the error of a product with a vector of length 1, relative to |v|.
double product_error(Index n_features);

/// Coordinates (n, k) of `rows` (n, d) less `mean`, in float64: (x - mean)'w_i with w_i row i of
/// `components` (k, d).
Matrix<double> coordinates(const RowsView& rows, const VectorView<double>& mean,
                           const MatrixView<double>& components, int n_threads);

/// Residuals (n, d) of `rows` (n, d) under a subspace, in float64: v - W'Wv with v = x - mean. What
/// a row gives does not depend on the rows beside it.
Matrix<double> residuals(const RowsView& rows, const VectorView<double>& mean,
                         const MatrixView<double>& components, int n_threads);

/// v = x - mean in float64 for `count` features of row `i` from `first` on.
void centre_row(const RowsView& rows, Index i, Index first, Index count, const double* mean,
                double* v);

/// Whether row `i` has neither NaN nor infinity.
bool is_finite(const RowsView& rows, Index i);

}  // namespace pydfm
