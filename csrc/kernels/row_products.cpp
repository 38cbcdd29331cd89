#include "kernels/row_products.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

namespace pydfm {

namespace {

using Packet = Eigen::internal::packet_traits<float>::type;

constexpr int kPacketSize = Eigen::internal::packet_traits<float>::size;
constexpr int kPacketsPerPanel = 2;
constexpr int kPanelWidth = kPacketsPerPanel * kPacketSize;

/// z (n_rows, kPackets * kPacketSize) += v (n_rows, depth) * panel (depth, the same), which is
/// summed up in float32 before it is added. Rows of v are kRowStride apart, rows of z `z_stride`.
template <std::size_t kPackets, std::size_t... kSum>
void multiply_strip(const float* v, const float* panel, Index depth, double* z, Index z_stride,
                    std::index_sequence<kSum...> /*n_rows * kPackets sums*/) {
  using namespace Eigen::internal;
  constexpr Index kWidth = kPackets * kPacketSize;
  constexpr Index kRows = sizeof...(kSum) / kPackets;
  Eigen::Array<float, kRows, kWidth, Eigen::RowMajor> total;
  const auto at = [&](std::size_t sum) {
    return total.data() + static_cast<Index>(sum) * Index{kPacketSize};
  };
  for (Index begin = 0; begin < depth; begin += kRunFeatures) {
    Packet sums[sizeof...(kSum)];
    ((sums[kSum] = pset1<Packet>(0.0F)), ...);
    const Index end = std::min(begin + kRunFeatures, depth);
    for (Index p = begin; p < end; ++p, panel += kWidth) {
      Packet w[kPackets];
      for (std::size_t i = 0; i < kPackets; ++i) w[i] = ploadu<Packet>(panel + i * kPacketSize);
      ((sums[kSum] = pmadd(pset1<Packet>(v[Index{kSum / kPackets} * kRowStride + p]),
                           w[kSum % kPackets], sums[kSum])),
       ...);
    }
    if (begin == 0) {
      (pstoreu(at(kSum), sums[kSum]), ...);
    } else {
      (pstoreu(at(kSum), padd(ploadu<Packet>(at(kSum)), sums[kSum])), ...);
    }
  }
  for (Index row = 0; row < kRows; ++row) {
    Eigen::Map<Eigen::Array<double, 1, kWidth>>(z + row * z_stride) +=
        total.row(row).template cast<double>();
  }
}

using Strip = std::make_index_sequence<kStripRows>;
using MultiplyStrip = void (*)(const float*, const float*, Index, double*, Index);

template <std::size_t kPackets, std::size_t kRows>
void multiply_rows(const float* v, const float* panel, Index depth, double* z, Index z_stride) {
  multiply_strip<kPackets>(v, panel, depth, z, z_stride,
                           std::make_index_sequence<kRows * kPackets>{});
}

template <std::size_t kPackets, std::size_t... kRow>
constexpr std::array<MultiplyStrip, sizeof...(kRow)> multiply_by_rows(
    std::index_sequence<kRow...> /*rows less one*/) {
  return {&multiply_rows<kPackets, kRow + 1>...};
}

using ExactPacket = Eigen::internal::packet_traits<double>::type;

constexpr std::size_t kExactRows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 4 : 2;
constexpr std::size_t kExactComponents = 4;

/// z (kRows, kComponents) += v (kRows, depth) * w (kComponents, depth)', both read along their
/// rows.
template <std::size_t kRows, std::size_t kComponents, std::size_t... kSum>
void multiply_exactly(const double* v, Index v_stride, const double* w, Index w_stride, Index depth,
                      double* z, Index z_stride, std::index_sequence<kSum...> /*all sums*/) {
  using namespace Eigen::internal;
  constexpr Index kSize = packet_traits<double>::size;
  ExactPacket sums[sizeof...(kSum)];
  ((sums[kSum] = pset1<ExactPacket>(0.0)), ...);
  Index p = 0;
  for (; p + kSize <= depth; p += kSize) {
    ((sums[kSum] =
          pmadd(ploadu<ExactPacket>(v + static_cast<Index>(kSum / kComponents) * v_stride + p),
                ploadu<ExactPacket>(w + static_cast<Index>(kSum % kComponents) * w_stride + p),
                sums[kSum])),
     ...);
  }
  const auto add = [&](Index row, Index component, const ExactPacket& sum) {
    double rest = 0;
    for (Index q = p; q < depth; ++q) rest += v[row * v_stride + q] * w[component * w_stride + q];
    z[row * z_stride + component] += predux(sum) + rest;
  };
  (add(kSum / kComponents, kSum % kComponents, sums[kSum]), ...);
}

}  // namespace

Panels::Panels(const MatrixView<double>& components)
    : features_(components.cols()),
      width_((components.rows() + kPacketSize - 1) / kPacketSize * kPacketSize),
      data_(Vector<float>::Zero(width_ * features_)) {
  for (Index first = 0; first < features_; first += kSliceFeatures) {
    const Index depth = std::min(kSliceFeatures, features_ - first);
    for (Index i = 0; i < components.rows(); ++i) {
      const Index panel = i / kPanelWidth * kPanelWidth;
      const Index stride = std::min<Index>(kPanelWidth, width_ - panel);
      float* const to = data_.data() + first * width_ + panel * depth + (i - panel);
      for (Index p = 0; p < depth; ++p) {
        to[p * stride] = static_cast<float>(components(i, first + p));
      }
    }
  }
}

void Panels::add_products(const float* v, Index n_rows, Index first, double* z) const {
  static constexpr auto kWhole = multiply_by_rows<kPacketsPerPanel>(Strip{});
  static constexpr auto kHalf = multiply_by_rows<1>(Strip{});
  const Index depth = std::min(kSliceFeatures, features_ - first);
  const float* panel = data_.data() + first * width_;
  const auto row = static_cast<std::size_t>(n_rows - 1);
  Index begin = 0;
  for (; begin + kPanelWidth <= width_; begin += kPanelWidth, panel += depth * kPanelWidth) {
    kWhole[row](v, panel, depth, z + begin, width_);
  }
  if (begin < width_) kHalf[row](v, panel, depth, z + begin, width_);
}

void add_exact_products(const double* v, Index v_stride, Index n_rows, const double* w,
                        Index w_stride, Index k, Index depth, double* z) {
  constexpr auto kRows = static_cast<Index>(kExactRows);
  constexpr auto kComponents = static_cast<Index>(kExactComponents);
  const auto block = [&](auto rows, auto components, Index row, Index component) {
    multiply_exactly<rows.value, components.value>(
        v + row * v_stride, v_stride, w + component * w_stride, w_stride, depth,
        z + row * k + component, k, std::make_index_sequence<rows.value * components.value>{});
  };
  using One = std::integral_constant<std::size_t, 1>;
  for (Index component = 0; component < k;) {
    const bool whole = component + kComponents <= k;
    for (Index row = 0; row < n_rows;) {
      const bool whole_rows = row + kRows <= n_rows;
      if (whole && whole_rows) {
        block(std::integral_constant<std::size_t, kExactRows>{},
              std::integral_constant<std::size_t, kExactComponents>{}, row, component);
      } else if (whole) {
        block(One{}, std::integral_constant<std::size_t, kExactComponents>{}, row, component);
      } else {
        block(One{}, One{}, row, component);
      }
      row += whole && whole_rows ? kRows : 1;
    }
    component += whole ? kComponents : 1;
  }
}

}  // namespace pydfm
