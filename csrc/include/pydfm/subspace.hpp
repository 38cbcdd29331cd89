// From the eigenvectors of a Gram matrix to principal components.
#pragma once

#include "pydfm/matrix.hpp"

namespace pydfm {

/// Principal components (k, d) of `rows` (n, d) from eigenpairs of their centred Gram matrix:
///
///   w_i = (X - 1 mean')' u_i / sqrt(value_i),   u_i row i of `vectors` (k, n), value_i > 0,
///
/// which is how the singular vectors of the centred rows on one side give those on the other.
template <typename Scalar>
Matrix<double> components_from_gram(const MatrixView<Scalar>& rows, const VectorView<double>& mean,
                                    const VectorView<double>& values,
                                    const MatrixView<double>& vectors, int n_threads);

/// Coordinates (n, k) of `rows` (n, d) less `mean`, in float64: (x - mean)'w_i with w_i row i of
/// `components` (k, d).
template <typename Scalar>
Matrix<double> coordinates(const MatrixView<Scalar>& rows, const VectorView<double>& mean,
                           const MatrixView<double>& components, int n_threads);

}  // namespace pydfm
