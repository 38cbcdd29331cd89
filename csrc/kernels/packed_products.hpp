// Products of packed factors in float64, at the speed of the processor's multipliers.
//
// Eigen's general product packs both its factors at every call, and its symmetric one is slower
// still: here a factor is packed once, by whoever centres it, and read as left side and as right.
#pragma once

#include <algorithm>

#include "kernels/matrix.hpp"

namespace pydfm {

/// Vectors of `depth` elements as products read them: panels of kWidth vectors, each element by
/// element, filled up with zeros.
class Packed {
 public:
  using Packet = Eigen::internal::packet_traits<double>::type;

  static constexpr Index kPacketSize = Eigen::internal::packet_traits<double>::size;
  static constexpr Index kWidth = std::max<Index>(kPacketSize, 4);
  /// Panels on the right that meet one on the left at a time: their sums fill the registers, but
  /// for what the factors need.
  static constexpr Index kMeet = std::max<Index>(
      (EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12) * kPacketSize / (kWidth * kWidth),
      1);

  /// `size` vectors, all zero.
  Packed(Index size, Index depth)
      : size_(size), depth_(depth), data_(Vector<double>::Zero(panels() * kWidth * depth)) {}

  Index size() const { return size_; }
  Index depth() const { return depth_; }
  Index panels() const { return (size_ + kWidth - 1) / kWidth; }

  /// Vectors [i kWidth, (i + 1) kWidth) from element `first` on: (depth, kWidth), row by row.
  const double* panel(Index i, Index first) const {
    return data_.data() + (i * depth_ + first) * kWidth;
  }
  double* panel(Index i, Index first) { return data_.data() + (i * depth_ + first) * kWidth; }

  /// Element `p` of all vectors.
  void set_element(Index p, const Eigen::Ref<const Vector<double>>& values) {
    for (Index i = 0; i < size_; i += kWidth) {
      std::copy_n(values.data() + i, std::min(kWidth, size_ - i), panel(i / kWidth, p));
    }
  }

  /// The same, of values[i] - shift[i] in float64.
  template <typename Scalar>
  void set_element(Index p, const Scalar* values, const double* shift) {
    const Index whole = size_ / kWidth;
    for (Index i = 0; i < whole; ++i, values += kWidth, shift += kWidth) {
      double* const to = panel(i, p);
      for (Index j = 0; j < kWidth; ++j) to[j] = static_cast<double>(values[j]) - shift[j];
    }
    for (Index j = 0; j < size_ - whole * kWidth; ++j) {
      panel(whole, p)[j] = static_cast<double>(values[j]) - shift[j];
    }
  }

  /// Makes element `p` of all vectors zero.
  void clear_element(Index p) {
    for (Index i = 0; i < panels(); ++i) std::fill_n(panel(i, p), kWidth, 0.0);
  }

  /// The sums of each vector's elements.
  Vector<double> sums() const;

  /// Vectors of panel `i`: rows of `values` (kWidth, depth or less).
  void set_panel(Index i, const Eigen::Ref<const Matrix<double>, 0, Eigen::OuterStride<>>& values);

 private:
  Index size_;
  Index depth_;
  Vector<double> data_;
};

/// Entries of a product to compute: all, or those on the diagonal and below it (and, undefined,
/// some above).
enum class Entries { kAll, kLower };

/// c (left.size(), right.size()) += the inner products of left's vectors with right's.
void add_products(const Packed& left, const Packed& right, Entries entries,
                  Eigen::Ref<Matrix<double>, 0, Eigen::OuterStride<>> c);

}  // namespace pydfm
