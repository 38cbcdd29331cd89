#include "linalg/eigensolver.hpp"

#include <algorithm>
#include <cmath>

#include "linalg/divide_and_conquer.hpp"
#include "linalg/tridiagonal.hpp"

namespace pydfm {

Index Wanted::of(const Vector<double>& values) const {
  const Index most = std::min(std::max<Index>(count, 0), values.size());
  if (share >= 1) return most;
  const double enough = share * (1 + 1e-12) * values.cwiseMax(0.0).sum();
  double sum = 0;
  Index k = 0;
  while (k < most && values[k] > 0 && sum <= enough) sum += values[k++];
  return k;
}

Eigenpairs eigh(const MatrixView<double>& a, const Wanted& wanted, int n_threads) {
  if (!a.allFinite()) throw EigensolverError("the matrix has entries that are NaN or infinite");

  // Brought near one by a power of two, which rounds nothing, so that no square overflows.
  const double size = a.size() == 0 ? 0.0 : a.cwiseAbs().maxCoeff();
  int exponent = 0;
  if (size > 0) std::frexp(size, &exponent);
  exponent = std::clamp(exponent, -1000, 1000);
  const double scale = std::ldexp(1.0, -exponent);
  const Tridiagonal t = tridiagonalise(a, scale, n_threads);
  Eigenpairs pairs = divide_and_conquer(t.diagonal, t.off_diagonal, wanted, n_threads);
  t.reflectors.apply(pairs.vectors, n_threads);
  for (double& value : pairs.values) value = std::ldexp(value, exponent);
  return pairs;
}

}  // namespace pydfm
