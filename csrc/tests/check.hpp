// What the tests need: checks that count, and seeded random matrices.
#pragma once

#include <cstdio>
#include <random>
#include <string>

#include "kernels/matrix.hpp"

namespace pydfm::testing {

inline int failures = 0;

inline void check(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

/// Not met by NaN.
inline void check_at_most(double value, double bound, const std::string& what) {
  char numbers[64];
  std::snprintf(numbers, sizeof numbers, ": %.3g, at most %.3g", value, bound);
  check(value <= bound, what + numbers);
}

template <typename Exception, typename Function>
void check_throws(const Function& function, const std::string& what) {
  try {
    function();
  } catch (const Exception&) {
    return;
  }
  check(false, what + " throws");
}

/// What main returns.
inline int result() { return failures == 0 ? 0 : 1; }

inline Matrix<double> normal(Index rows, Index cols, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> distribution;
  return Matrix<double>::NullaryExpr(rows, cols, [&] { return distribution(generator); });
}

/// Largest absolute value: 0 of nothing, NaN where one is.
template <typename Derived>
double largest(const Eigen::MatrixBase<Derived>& values) {
  return values.size() == 0 ? 0.0 : values.cwiseAbs().template maxCoeff<Eigen::PropagateNaN>();
}

/// Same size, same bits.
template <typename A, typename B>
bool same(const A& a, const B& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() && (a.array() == b.array()).all();
}

}  // namespace pydfm::testing
