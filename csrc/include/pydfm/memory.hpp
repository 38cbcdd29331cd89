// Large results on large pages: a page fault for every 4 KiB of them costs as much as a tenth of a
// matrix product.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "pydfm/matrix.hpp"

namespace pydfm {

/// Advises the system to keep `matrix`, which nobody has written to yet, on large pages.
template <typename Plain>
void on_large_pages([[maybe_unused]] Eigen::PlainObjectBase<Plain>& matrix) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096;
  constexpr std::uintptr_t kLarge = std::uintptr_t{4} << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(matrix.data());
  const std::uintptr_t bytes = static_cast<std::uintptr_t>(matrix.size()) * sizeof(*matrix.data());
  if (bytes >= kLarge) {
    // Advice only: where it fails, or the page is larger, nothing is lost but time.
    const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), address + bytes - begin, MADV_HUGEPAGE);
  }
#endif
}

/// A matrix (rows, cols) of undefined values, on large pages where the system has them.
inline Matrix<double> large_matrix(Index rows, Index cols) {
  Matrix<double> matrix(rows, cols);
  on_large_pages(matrix);
  return matrix;
}

}  // namespace pydfm
