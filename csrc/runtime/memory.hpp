// Large results on large pages: a page fault for every 4 KiB of them costs as much as a tenth of a
// matrix product.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pydfm {

/// Advises the system to keep memory that nobody has written to yet on large pages, where there is
/// enough of it.
inline void advise_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096;
  constexpr std::size_t kLarge = std::size_t{4} << 20;
  if (bytes >= kLarge) {
    // Advice only: where it fails, or the page is larger, nothing is lost but time.
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), address + bytes - begin, MADV_HUGEPAGE);
  }
#endif
}

}  // namespace pydfm
