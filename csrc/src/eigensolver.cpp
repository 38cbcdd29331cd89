#include "pydfm/eigensolver.hpp"

#include <algorithm>
#include <cmath>

#include "pydfm/band.hpp"
#include "pydfm/bulge_chasing.hpp"
#include "pydfm/divide_and_conquer.hpp"
#include "pydfm/tridiagonal.hpp"

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

Reduction reduction_of(Index n, const Wanted& wanted) {
  constexpr Index kFew = 4;
  constexpr Index kByBand = 3072;
  const bool few = wanted.share < 1 || wanted.count <= n / kFew;
  return n >= kByBand && few ? Reduction::kByBand : Reduction::kDirect;
}

Eigenpairs eigh(const MatrixView<double>& a, const Wanted& wanted, int n_threads) {
  return eigh(a, wanted, n_threads, reduction_of(a.rows(), wanted));
}

Eigenpairs eigh(const MatrixView<double>& a, const Wanted& wanted, int n_threads,
                Reduction reduction) {
  if (!a.allFinite()) throw EigensolverError("the matrix has entries that are NaN or infinite");

  // Brought near one by a power of two, which rounds nothing, so that no square overflows.
  const double size = a.size() == 0 ? 0.0 : a.cwiseAbs().maxCoeff();
  int exponent = 0;
  if (size > 0) std::frexp(size, &exponent);
  exponent = std::clamp(exponent, -1000, 1000);
  const double scale = std::ldexp(1.0, -exponent);
  Eigenpairs pairs;
  if (reduction == Reduction::kDirect) {
    const Tridiagonal t = tridiagonalise(a, scale, n_threads);
    pairs = divide_and_conquer(t.diagonal, t.off_diagonal, wanted, n_threads);
    t.reflectors.apply(pairs.vectors, n_threads);
  } else {
    BandForm form = reduce_to_band(a, scale, n_threads);
    const ChasedBand t = chase_bulges(form, n_threads);
    pairs = divide_and_conquer(t.diagonal, t.off_diagonal, wanted, n_threads);
    t.reflectors.apply(pairs.vectors, n_threads);
    form.reflectors.apply(pairs.vectors, n_threads);
  }
  for (double& value : pairs.values) value = std::ldexp(value, exponent);
  return pairs;
}

}  // namespace pydfm
