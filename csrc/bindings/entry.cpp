// Where Python enters a build of the core, under its own name.
#include <Python.h>

PyMODINIT_FUNC PyInit__core();

PyMODINIT_FUNC PYDFM_ENTRY() { return PyInit__core(); }
