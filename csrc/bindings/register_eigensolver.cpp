#include <limits>

#include "bindings/arrays.hpp"
#include "bindings/calls.hpp"
#include "bindings/register.hpp"

namespace pydfm::bindings {

void register_eigensolver(py::module_& m) {
  using namespace py::literals;
  m.def(
      "eigh",
      [](const Numbers& a, Index count, double share, int n_threads) {
        const core::Matrix symmetric = matrix(a, "a");
        check(symmetric.rows == symmetric.cols, "a must be square");
        const core::Eigenpairs pairs =
            without_gil([&] { return core::eigh(symmetric, count, share, n_threads); });
        return py::make_tuple(to_vector(pairs.values), to_matrix(pairs.vectors));
      },
      "a"_a.noconvert(), py::kw_only(), "count"_a = std::numeric_limits<Index>::max(),
      "share"_a = 1.0, "n_threads"_a);
}

}  // namespace pydfm::bindings
