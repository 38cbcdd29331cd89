#include "kernels/packed_products.hpp"

#include <array>
#include <cstddef>
#include <utility>

namespace pydfm {

namespace {

/// c (kWidth, kPanels * kWidth) += a panel times kPanels panels, which lie `panel_size` apart.
template <Index kPanels, std::size_t... kSum>
void add_tile(const double* left, const double* right, Index panel_size, Index depth, double* c,
              Index c_stride, std::index_sequence<kSum...> /*all sums*/) {
  using namespace Eigen::internal;
  using Packet = Packed::Packet;
  constexpr Index kSize = Packed::kPacketSize;
  constexpr Index kPerPanel = Packed::kWidth / kSize;
  constexpr Index kPackets = kPanels * kPerPanel;
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

using AddTile = void (*)(const double*, const double*, Index, Index, double*, Index);

template <Index kPanels>
void add_panels(const double* left, const double* right, Index panel_size, Index depth, double* c,
                Index c_stride) {
  constexpr Index kSums = Packed::kWidth * kPanels * Packed::kWidth / Packed::kPacketSize;
  add_tile<kPanels>(left, right, panel_size, depth, c, c_stride,
                    std::make_index_sequence<static_cast<std::size_t>(kSums)>{});
}

template <Index... kPanel>
constexpr std::array<AddTile, sizeof...(kPanel)> add_by_panels(
    std::integer_sequence<Index, kPanel...> /*panels less one*/) {
  return {&add_panels<kPanel + 1>...};
}

// A square of as many rows as a packet has values, transposed. (The packet's type is deduced:
// compilers warn where it is named as a template's argument.)
template <typename First>
void set_square(const First& first, const double* from, Index stride, double* to) {
  using namespace Eigen::internal;
  PacketBlock<First, Packed::kPacketSize> square;
  square.packet[0] = first;
  for (Index r = 1; r < Packed::kPacketSize; ++r)
    square.packet[r] = ploadu<First>(from + r * stride);
  ptranspose(square);
  for (Index r = 0; r < Packed::kPacketSize; ++r)
    pstoreu(to + r * Packed::kWidth, square.packet[r]);
}

}  // namespace

Vector<double> Packed::sums() const {
  Vector<double> sums(panels() * kWidth);
  for (Index i = 0; i < panels(); ++i) {
    sums.segment<kWidth>(i * kWidth) =
        Eigen::Map<const Eigen::Matrix<double, kWidth, Eigen::Dynamic>>(panel(i, 0), kWidth, depth_)
            .rowwise()
            .sum();
  }
  return sums.head(size_);
}

void Packed::set_panel(Index i,
                       const Eigen::Ref<const Matrix<double>, 0, Eigen::OuterStride<>>& values) {
  const Index stride = values.outerStride();
  Index p = 0;
  for (; p + kPacketSize <= values.cols(); p += kPacketSize) {
    for (Index row = 0; row < kWidth; row += kPacketSize) {
      const double* const square = values.data() + row * stride + p;
      set_square(Eigen::internal::ploadu<Packet>(square), square, stride, panel(i, p) + row);
    }
  }
  for (; p < values.cols(); ++p) Eigen::Map<Vector<double>>(panel(i, p), kWidth) = values.col(p);
}

void add_products(const Packed& left, const Packed& right, Entries entries,
                  Eigen::Ref<Matrix<double>, 0, Eigen::OuterStride<>> c) {
  static constexpr auto kAddTile =
      add_by_panels(std::make_integer_sequence<Index, Packed::kMeet>{});
  constexpr Index kDepth = 256;  // of which a few panels stay near the first cache
  constexpr Index kWidth = Packed::kWidth;
  constexpr Index kMeet = Packed::kMeet;
  Eigen::Matrix<double, kWidth, kMeet * kWidth, Eigen::RowMajor> edge;
  for (Index first = 0; first < left.depth(); first += kDepth) {
    const Index depth = std::min(kDepth, left.depth() - first);
    for (Index j = 0; j < right.panels(); j += kMeet) {
      const double* const w = right.panel(j, first);
      for (Index i = entries == Entries::kLower ? j : 0; i < left.panels(); ++i) {
        const Index most = entries == Entries::kLower ? i + 1 : right.panels();
        const Index panels = std::min(kMeet, most - j);
        const auto add_tile = kAddTile[static_cast<std::size_t>(panels - 1)];
        const Index height = std::min(kWidth, left.size() - i * kWidth);
        const Index width = std::min(panels * kWidth, right.size() - j * kWidth);
        const auto add_to = [&](double* to, Index stride) {
          add_tile(left.panel(i, first), w, right.depth() * kWidth, depth, to, stride);
        };
        if (height == kWidth && width == panels * kWidth) {
          add_to(&c(i * kWidth, j * kWidth), c.outerStride());
        } else {
          edge.setZero();
          add_to(edge.data(), edge.outerStride());
          c.block(i * kWidth, j * kWidth, height, width) += edge.topLeftCorner(height, width);
        }
      }
    }
  }
}

}  // namespace pydfm
