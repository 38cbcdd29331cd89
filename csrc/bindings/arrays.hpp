// numpy's arrays as the core's views, and the core's arrays as numpy's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core.hpp"
#include "runtime/arrays.hpp"

namespace pydfm::bindings {

namespace py = pybind11;

/// Not converted: other types, and other orders than C's, are a TypeError.
template <typename Scalar>
using NumpyArray = py::array_t<Scalar, py::array::c_style>;
using Numbers = NumpyArray<double>;

inline void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

inline void check_aligned(const py::array& array, const char* name, std::size_t alignment) {
  check(reinterpret_cast<std::uintptr_t>(array.data()) % alignment == 0,
        std::string(name) + " must be aligned in memory; copy it");
}

inline void check_matrix(const py::array& array, const char* name, std::size_t alignment) {
  check(array.ndim() == 2,
        std::string(name) + " has " + std::to_string(array.ndim()) + " dimensions; it must have 2");
  check_aligned(array, name, alignment);
}

/// Rows (n, d) of one feature at least.
template <typename Scalar>
RowsView rows_view(const NumpyArray<Scalar>& array) {
  check_matrix(array, "rows", alignof(Scalar));
  check(array.shape(1) > 0, "rows have no features; they need at least one");
  return {array.data(), array.shape(0), array.shape(1)};
}

inline core::Matrix matrix(const Numbers& array, const char* name) {
  check_matrix(array, name, alignof(double));
  return {array.data(), array.shape(0), array.shape(1)};
}

/// A vector, of `size` where that is not negative.
inline core::Vector vector(const Numbers& array, const char* name, Index size) {
  check(array.ndim() == 1 && (size < 0 || array.shape(0) == size),
        std::string(name) + " must be one-dimensional" +
            (size < 0 ? "" : " with length " + std::to_string(size)));
  check_aligned(array, name, alignof(double));
  return {array.data(), array.shape(0)};
}

inline void check_positive(const core::Vector& values, const char* name) {
  check(std::all_of(values.data, values.data + values.size, [](double v) { return v > 0; }),
        std::string(name) + " must be positive");
}

template <typename Scalar>
py::array_t<Scalar> numpy_array(const Array<Scalar>& array, std::initializer_list<Index> shape) {
  using Owner = std::shared_ptr<const void>;
  const py::capsule owner(std::make_unique<Owner>(array.owner).release(),
                          [](void* kept) { std::unique_ptr<Owner>(static_cast<Owner*>(kept)); });
  return py::array_t<Scalar>(shape, array.data, owner);
}

template <typename Scalar>
py::array_t<Scalar> to_matrix(const Array<Scalar>& array) {
  return numpy_array(array, {array.rows, array.cols});
}

template <typename Scalar>
py::array_t<Scalar> to_vector(const Array<Scalar>& array) {
  return numpy_array(array, {array.rows});
}

}  // namespace pydfm::bindings
