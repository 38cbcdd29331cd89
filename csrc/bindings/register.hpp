// What registers the functions and classes of a concern with the module.
#pragma once

#include <pybind11/pybind11.h>

namespace pydfm::bindings {

void register_runtime(pybind11::module_& m);
void register_moments(pybind11::module_& m);
void register_eigensolver(pybind11::module_& m);
void register_scoring(pybind11::module_& m);
void register_held_out(pybind11::module_& m);

}  // namespace pydfm::bindings
