// Products of packed factors in float64, at the speed of the processor's multipliers.
//
// Eigen's general product packs both its factors at every call, and its symmetric one is slower
// still: here a factor is packed once, by whoever centres it, and read as left side and as right.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "pydfm/matrix.hpp"

namespace pydfm {

/// Vectors of `depth` elements as products read them: panels of kWidth vectors, each element by
/// element, filled up with zeros.
class Packed {
 public:
  using Packet = Eigen::internal::packet_traits<double>::type;

  static constexpr Index kPacketSize = Eigen::internal::packet_traits<double>::size;
  static constexpr Index kWidth = std::max<Index>(kPacketSize, 4);
  /// Panels on the right that meet one on the left: their sums fill the registers, but for what the
  /// factors need.
  static constexpr Index kMeet = std::max<Index>(
      (EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12) * kPacketSize / (kWidth * kWidth),
      1);

  /// `size` vectors, all zero.
  Packed(Index size, Index depth)
      : size_(size),
        depth_(depth),
        panels_((size + kMeet * kWidth - 1) / (kMeet * kWidth) * kMeet),
        data_(Vector<double>::Zero(panels_ * kWidth * depth)) {}

  Index size() const { return size_; }
  Index depth() const { return depth_; }
  /// Panels that hold vectors; more of them are there, up to a multiple of kMeet.
  Index panels() const { return (size_ + kWidth - 1) / kWidth; }

  /// Vectors [i kWidth, (i + 1) kWidth) from element `first` on: (depth, kWidth), row by row.
  const double* panel(Index i, Index first = 0) const {
    return data_.data() + (i * depth_ + first) * kWidth;
  }
  double* panel(Index i, Index first = 0) {
    return data_.data() + (i * depth_ + first) * kWidth;
  }

  /// Element `p` of all vectors.
  void set_element(Index p, const Vector<double>& values) {
    for (Index i = 0; i < size_; i += kWidth) {
      std::copy_n(values.data() + i, std::min(kWidth, size_ - i), panel(i / kWidth, p));
    }
  }

  /// Subtracts `values[i]` from the first `depth` elements of each vector i.
  void subtract(const Vector<double>& values, Index depth) {
    for (Index i = 0; i < size_; i += kWidth) {
      Eigen::Array<double, kWidth, 1> of_panel = Eigen::Array<double, kWidth, 1>::Zero();
      const Index width = std::min(kWidth, size_ - i);
      of_panel.head(width) = values.segment(i, width);
      Eigen::Map<Eigen::Array<double, kWidth, Eigen::Dynamic>>(panel(i / kWidth), kWidth, depth)
          .colwise() -= of_panel;
    }
  }

  /// The first elements of vector `i`.
  void set_vector(Index i, const Vector<double>& values) {
    double* const to = panel(i / kWidth) + i % kWidth;
    for (Index p = 0; p < values.size(); ++p) to[p * kWidth] = values[p];
  }

 private:
  Index size_;
  Index depth_;
  Index panels_;
  Vector<double> data_;
};

namespace detail {

/// c (kWidth, kMeet * kWidth) += a panel times kMeet panels, which lie `panel_size` apart.
template <std::size_t... kSum>
void add_tile(const double* left, const double* right, Index panel_size, Index depth, double* c,
              Index c_stride, std::index_sequence<kSum...> /*all sums*/) {
  using namespace Eigen::internal;
  using Packet = Packed::Packet;
  constexpr Index kSize = Packed::kPacketSize;
  constexpr Index kPerPanel = Packed::kWidth / kSize;
  constexpr Index kPackets = Packed::kMeet * kPerPanel;
  const auto row = [](std::size_t sum) { return static_cast<Index>(sum) / kPackets; };
  const auto packet = [](std::size_t sum) { return static_cast<Index>(sum) % kPackets; };
  const auto at = [&](std::size_t sum) { return c + row(sum) * c_stride + packet(sum) * kSize; };

  (prefetch(at(kSum)), ...);
  Packet sums[sizeof...(kSum)];
  ((sums[kSum] = pset1<Packet>(0.0)), ...);
  for (Index p = 0; p < depth; ++p, left += Packed::kWidth, right += Packed::kWidth) {
    Packet w[kPackets];
    for (Index i = 0; i < kPackets; ++i) {
      w[i] = ploadu<Packet>(right + i / kPerPanel * panel_size + i % kPerPanel * kSize);
    }
    ((sums[kSum] = pmadd(pset1<Packet>(left[row(kSum)]), w[packet(kSum)], sums[kSum])), ...);
  }
  (pstoreu(at(kSum), padd(ploadu<Packet>(at(kSum)), sums[kSum])), ...);
}

inline void add_tile(const double* left, const double* right, Index panel_size, Index depth,
                     double* c, Index c_stride) {
  constexpr Index kPackets = Packed::kMeet * Packed::kWidth / Packed::kPacketSize;
  add_tile(left, right, panel_size, depth, c, c_stride,
           std::make_index_sequence<static_cast<std::size_t>(Packed::kWidth * kPackets)>{});
}

}  // namespace detail

/// Entries of a product to compute: all, or those on the diagonal and below it (and, undefined,
/// some above).
enum class Part { kAll, kLower };

/// c (left.size(), right.size()) += the inner products of left's vectors with right's.
inline void add_products(const Packed& left, const Packed& right, Part part,
                         Eigen::Ref<Matrix<double>, 0, Eigen::OuterStride<>> c) {
  constexpr Index kDepth = 256;  // of which kMeet panels and one stay near the first cache
  constexpr Index kWidth = Packed::kWidth;
  constexpr Index kColumns = Packed::kMeet * kWidth;
  const Index panel_size = right.depth() * kWidth;
  Eigen::Matrix<double, kWidth, kColumns, Eigen::RowMajor> edge;
  for (Index first = 0; first < left.depth(); first += kDepth) {
    const Index depth = std::min(kDepth, left.depth() - first);
    for (Index j = 0; j < c.cols(); j += kColumns) {
      const double* const w = right.panel(j / kWidth, first);
      for (Index i = part == Part::kLower ? j : 0; i < c.rows(); i += kWidth) {
        const double* const v = left.panel(i / kWidth, first);
        const Index height = std::min(kWidth, c.rows() - i);
        const Index width = std::min(kColumns, c.cols() - j);
        if (height == kWidth && width == kColumns) {
          detail::add_tile(v, w, panel_size, depth, &c(i, j), c.outerStride());
        } else {
          edge.setZero();
          detail::add_tile(v, w, panel_size, depth, edge.data(), kColumns);
          c.block(i, j, height, width) += edge.topLeftCorner(height, width);
        }
      }
    }
  }
}

}  // namespace pydfm
