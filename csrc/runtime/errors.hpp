// Errors of the core that are no std::invalid_argument.
#pragma once

#include <stdexcept>

namespace pydfm {

/// A matrix has no eigenpairs that could be computed.
struct EigensolverError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace pydfm
