// Views of memory that somebody else owns, and arrays that the core returns. No Eigen type is
// here: these are what sources that are compiled once, and those that are compiled for each
// instruction set, agree upon.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace pydfm {

using Index = std::ptrdiff_t;

/// Rows of features (n, d), C-contiguous, in float32 or in float64.
class RowsView {
 public:
  template <typename Scalar>
  RowsView(const Scalar* data, Index rows, Index cols)
      : data_(data), rows_(rows), cols_(cols), is_single_(std::is_same_v<Scalar, float>) {
    static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>);
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }

  /// Calls `visit(data)` with the rows' `const float*` or `const double*`.
  template <typename Visit>
  auto visit(const Visit& visit) const {
    return is_single_ ? visit(static_cast<const float*>(data_))
                      : visit(static_cast<const double*>(data_));
  }

 private:
  const void* data_;
  Index rows_, cols_;
  bool is_single_;
};

/// A matrix, or a vector (cols = 1), and what keeps its memory.
template <typename Scalar>
struct Array {
  std::shared_ptr<const void> owner;
  Scalar* data;
  Index rows, cols;
};

/// Takes a matrix, whose memory is not copied.
template <typename Plain>
Array<typename Plain::Scalar> to_array(Plain&& matrix) {
  static_assert(!std::is_lvalue_reference_v<Plain>);
  const auto owner = std::make_shared<Plain>(std::move(matrix));
  return {owner, owner->data(), owner->rows(), owner->cols()};
}

}  // namespace pydfm
