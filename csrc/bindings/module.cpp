// The Python module, the same for all instruction sets; entry.cpp gives it its name.
#include <pybind11/pybind11.h>

#include "bindings/register.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The compiled core of pydfm, built for one instruction set.";
  pydfm::bindings::register_runtime(m);
  pydfm::bindings::register_moments(m);
  pydfm::bindings::register_eigensolver(m);
  pydfm::bindings::register_scoring(m);
  pydfm::bindings::register_held_out(m);
}
