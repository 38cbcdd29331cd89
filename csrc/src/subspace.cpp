#include "pydfm/subspace.hpp"

#include <algorithm>

#include "pydfm/memory.hpp"
#include "pydfm/packed_products.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

template <typename Scalar>
Matrix<double> components_from_gram(const MatrixView<Scalar>& rows, const VectorView<double>& mean,
                                    const VectorView<double>& values,
                                    const MatrixView<double>& vectors, int n_threads) {
  const Index n = rows.rows();
  const Index d = rows.cols();
  const Index k = vectors.rows();
  Packed scaled(k, n);
  for (Index i = 0; i < k; i += Packed::kWidth) {
    poll();
    const Index count = std::min(Packed::kWidth, k - i);
    Matrix<double> panel = Matrix<double>::Zero(Packed::kWidth, n);
    panel.topRows(count) = values.segment(i, count).cwiseSqrt().cwiseInverse().asDiagonal() *
                           vectors.middleRows(i, count);
    scaled.set_panel(i / Packed::kWidth, panel);
  }
  Matrix<double> components = large_matrix(k, d);
  constexpr Index kColumns = 96;  // with the rows' values in float64 they stay in the cache
  parallel_blocks(d, kColumns, n_threads, [&](Index begin, Index count) {
    Packed centred(count, n);
    for (Index i = 0; i < n; ++i)
      centred.set_element(i, rows.row(i).data() + begin, mean.data() + begin);
    // In one piece: the components' rows may lie a power of two apart, on the same few lines of the
    // cache.
    Matrix<double> columns = Matrix<double>::Zero(k, count);
    add_products(scaled, centred, Entries::kAll, columns);
    components.middleCols(begin, count) = columns;
  });
  return components;
}

template <typename Scalar>
Matrix<double> coordinates(const MatrixView<Scalar>& rows, const VectorView<double>& mean,
                           const MatrixView<double>& components, int n_threads) {
  Matrix<double> result(rows.rows(), components.rows());
  constexpr Index kRows = 256;
  parallel_blocks(rows.rows(), kRows, n_threads, [&](Index begin, Index count) {
    const Matrix<double> centred =
        rows.middleRows(begin, count).template cast<double>().rowwise() - mean.transpose();
    result.middleRows(begin, count).noalias() = centred * components.transpose();
  });
  return result;
}

template Matrix<double> components_from_gram(const MatrixView<float>&, const VectorView<double>&,
                                             const VectorView<double>&, const MatrixView<double>&,
                                             int);
template Matrix<double> components_from_gram(const MatrixView<double>&, const VectorView<double>&,
                                             const VectorView<double>&, const MatrixView<double>&,
                                             int);
template Matrix<double> coordinates(const MatrixView<float>&, const VectorView<double>&,
                                    const MatrixView<double>&, int);
template Matrix<double> coordinates(const MatrixView<double>&, const VectorView<double>&,
                                    const MatrixView<double>&, int);

}  // namespace pydfm
