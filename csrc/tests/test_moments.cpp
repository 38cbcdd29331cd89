#include "stats/moments.hpp"

#include <limits>
#include <stdexcept>
#include <string>

#include "check.hpp"

namespace {

using pydfm::as_rows;
using pydfm::Gram;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::Moments;
using pydfm::Vector;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::check_throws;
using pydfm::testing::largest;
using pydfm::testing::normal;
using pydfm::testing::same;

// The definitions, one product at a time.
Moments naive(const Matrix<double>& rows) {
  const Index n = rows.rows(), d = rows.cols();
  Moments m{n, Vector<double>::Zero(d), Matrix<double>::Zero(d, d)};
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < d; ++j) m.mean[j] += rows(i, j) / static_cast<double>(n);
  }
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < d; ++j) {
      for (Index k = 0; k < d; ++k) {
        m.scatter(j, k) += (rows(i, j) - m.mean[j]) * (rows(i, k) - m.mean[k]);
      }
    }
  }
  return m;
}

void check_close(const Moments& m, const Moments& expected, double bound, const std::string& what) {
  check(m.count == expected.count, what + ", count");
  check_at_most(largest(m.mean - expected.mean), bound, what + ", mean");
  check_at_most(largest(m.scatter - expected.scatter), bound * static_cast<double>(m.count),
                what + ", scatter");
  check(same(m.scatter, m.scatter.transpose()), what + ", symmetry");
}

void moments_are_those_of_the_definition() {
  for (const Index n : {1, 2, 65, 333}) {
    for (const Index d : {1, 5, 130}) {
      for (const double offset : {0.0, 1e4}) {
        const Matrix<double> rows = normal(n, d, 1).array() + offset;
        const std::string what = std::to_string(n) + " x " + std::to_string(d);
        check_close(pydfm::moments(as_rows(rows), 2), naive(rows), 1e-10, what);
        const Matrix<float> single = rows.cast<float>();
        check_close(pydfm::moments(as_rows(single), 2), naive(single.cast<double>()), 1e-10,
                    what + " float");
      }
    }
  }
}

// The rows about whose mean moments are taken may be unlike all others.
void atypical_rows_in_even_steps_cost_few_digits() {
  for (const Index n : {1280, 20000}) {
    const Index step = n / std::max<Index>(128, n / 64);
    Matrix<double> rows = normal(n, 3, 6);
    for (Index i = 0; i < n; i += step) rows(i, 0) += 1e6;
    const Moments expected = naive(rows);
    const Moments m = pydfm::moments(as_rows(rows), 2);
    const std::string what = std::to_string(n) + " rows with outliers in even steps";
    check_at_most(largest(m.mean - expected.mean), 1e-9, what + ", mean");
    check_at_most(largest(m.scatter - expected.scatter), 1e-13 * expected.scatter.trace(), what);
  }
}

void gram_is_that_of_the_definition() {
  for (const Index n : {1, 7, 150}) {
    const Matrix<double> rows = normal(n, 1100, 2).array() - 3;
    const Gram g = pydfm::gram(as_rows(rows), 2);
    const Vector<double> mean = rows.colwise().mean();
    const Matrix<double> centred = rows.rowwise() - mean.transpose();
    const Matrix<double> products = centred * centred.transpose();
    check_at_most(largest(g.mean - mean), 1e-13, "gram, mean");
    check_at_most(largest(g.gram - products), 1e-10, "gram, products");
    check(same(g.gram, g.gram.transpose()), "gram, symmetry");
  }
}

void merged_moments_are_those_of_all_rows() {
  const Matrix<double> all = normal(300, 40, 3);
  const Matrix<double> a = all.topRows(1), b = all.middleRows(1, 99), c = all.bottomRows(200);
  const Moments ma = pydfm::moments(as_rows(a), 1);
  const Moments mb = pydfm::moments(as_rows(b), 1);
  const Moments mc = pydfm::moments(as_rows(c), 1);
  check_close(pydfm::merge(pydfm::merge(ma, mb), mc), naive(all), 1e-13, "(a + b) + c");
  check_close(pydfm::merge(ma, pydfm::merge(mb, mc)), naive(all), 1e-13, "a + (b + c)");
  check_close(pydfm::merge(Moments{}, mb), mb, 0, "nothing + b");
  check_close(pydfm::merge(mb, Moments{}), mb, 0, "b + nothing");
}

void bits_do_not_depend_on_threads() {
  const Matrix<float> rows = normal(3000, 300, 4).cast<float>();
  const Moments one = pydfm::moments(as_rows(rows), 1);
  const Matrix<float> few = rows.topRows(300);
  const Gram one_gram = pydfm::gram(as_rows(few), 1);
  for (const int n_threads : {2, 3, 8}) {
    const Moments m = pydfm::moments(as_rows(rows), n_threads);
    check(same(m.mean, one.mean) && same(m.scatter, one.scatter), "moments' bits");
    const Gram g = pydfm::gram(as_rows(few), n_threads);
    check(same(g.mean, one_gram.mean) && same(g.gram, one_gram.gram), "gram's bits");
  }
}

void bad_rows_show() {
  Matrix<double> rows(0, 3);
  check_throws<std::invalid_argument>([&] { pydfm::moments(as_rows(rows), 1); }, "no rows");
  check_throws<std::invalid_argument>([&] { pydfm::gram(as_rows(rows), 1); }, "gram of no rows");
  rows = normal(20, 3, 5);
  rows(17, 1) = std::numeric_limits<double>::quiet_NaN();
  check(!pydfm::moments(as_rows(rows), 2).mean.allFinite(), "NaN shows in the mean");
  rows(17, 1) = std::numeric_limits<double>::infinity();
  check(!pydfm::gram(as_rows(rows), 2).mean.allFinite(), "infinity shows in the mean");
}

}  // namespace

int main() {
  moments_are_those_of_the_definition();
  atypical_rows_in_even_steps_cost_few_digits();
  gram_is_that_of_the_definition();
  merged_moments_are_those_of_all_rows();
  bits_do_not_depend_on_threads();
  bad_rows_show();
  return pydfm::testing::result();
}
