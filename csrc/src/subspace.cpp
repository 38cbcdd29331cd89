#include "pydfm/subspace.hpp"

#include "pydfm/memory.hpp"
#include "pydfm/parallel.hpp"

namespace pydfm {

template <typename Scalar>
Matrix<double> components_from_gram(const MatrixView<Scalar>& rows, const VectorView<double>& mean,
                                    const VectorView<double>& values,
                                    const MatrixView<double>& vectors, int n_threads) {
  const Index d = rows.cols();
  const Matrix<double> scaled = values.cwiseSqrt().cwiseInverse().asDiagonal() * vectors;
  Matrix<double> components = large_matrix(vectors.rows(), d);
  constexpr Index kColumns = 128;  // with the rows' values in float64 they stay in the cache
  parallel_blocks(d, kColumns, n_threads, [&](Index begin, Index count) {
    const Matrix<double> centred = rows.middleCols(begin, count).template cast<double>().rowwise() -
                                   mean.segment(begin, count).transpose();
    components.middleCols(begin, count).noalias() = scaled * centred;
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
