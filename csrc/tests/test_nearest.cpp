#include "stats/nearest.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "random_class.hpp"

namespace {

using pydfm::as_rows;
using pydfm::Bounds;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::Scorer;
using pydfm::ScoreType;
using pydfm::testing::check;
using pydfm::testing::kTypes;
using pydfm::testing::normal;
using pydfm::testing::RandomClass;
using pydfm::testing::same;

struct Classes {
  explicit Classes(std::vector<RandomClass> some) : classes(std::move(some)) {
    for (const RandomClass& c : classes) scorers.push_back(c.scorer());
    for (const Scorer& scorer : scorers) pointers.push_back(&scorer);
  }

  std::vector<RandomClass> classes;
  std::vector<Scorer> scorers;
  std::vector<const Scorer*> pointers;
};

// Classes with 0 to `most` components, whose means are as far from zero as `spread` says.
Classes some_classes(Index n, Index d, Index most, double spread) {
  std::vector<RandomClass> classes;
  for (Index c = 0; c < n; ++c) {
    classes.emplace_back(d, c % (most + 1), static_cast<unsigned>(20 + c), 0.0);
    classes.back().mean *= spread;
  }
  return Classes(std::move(classes));
}

// Rows of each class in turn, with noise of different sizes: some need the exact pass.
Matrix<float> rows_of(const Classes& all, Index n) {
  Matrix<float> rows(n, all.classes.front().mean.size());
  for (Index i = 0; i < n; ++i) {
    const RandomClass& own = all.classes[static_cast<std::size_t>(i) % all.classes.size()];
    const Matrix<double> z = normal(1, own.components.rows(), static_cast<unsigned>(2 * i + 1));
    const double size = i % 3 == 0 ? 1e-4 : 0.1;
    rows.row(i) = (own.mean.transpose() + z * own.components +
                   size * normal(1, rows.cols(), static_cast<unsigned>(2 * i)))
                      .cast<float>();
  }
  return rows;
}

// The least of the classes' own scores, the first of equals.
void check_nearest(const Classes& all, const Matrix<float>& rows, const std::string& what) {
  Matrix<float> least = Matrix<float>::Constant(4, rows.rows(), std::numeric_limits<float>::max());
  for (const Scorer& scorer : all.scorers) {
    least = least.cwiseMin(pydfm::score(as_rows(rows), scorer, kTypes, 2));
  }
  const auto brute = pydfm::score_nearest(as_rows(rows), all.pointers, nullptr, kTypes, 2);
  check(same(brute.scores, least), what + ": the least score, to the bit");
  const Bounds bounds(all.pointers, 2);
  for (const int n_threads : {1, 2, 5}) {
    const auto some = pydfm::score_nearest(as_rows(rows), all.pointers, &bounds, kTypes, n_threads);
    check(same(some.scores, brute.scores), what + ": scores with bounds");
    check(same(some.classes, brute.classes), what + ": classes with bounds");
  }
  for (std::size_t t = 0; t < kTypes.size(); ++t) {
    const auto alone = pydfm::score_nearest(as_rows(rows), all.pointers, &bounds, {kTypes[t]}, 2);
    const auto row = static_cast<Index>(t);
    check(same(alone.scores, Matrix<float>(brute.scores.row(row))), what + ": one type");
    check(same(alone.classes, Matrix<int>(brute.classes.row(row))), what + ": its classes");
  }
}

void the_nearest_class_is_the_least_of_all() {
  for (const double spread : {0.0, 0.01, 1.0, 100.0}) {
    for (const Index d : {1, 20, 90, 300}) {
      const Classes all = some_classes(40, d, std::min<Index>(d, 12), spread);
      check_nearest(all, rows_of(all, 700),
                    std::to_string(d) + " features, spread " + std::to_string(spread));
    }
  }
}

void bounds_are_below_what_they_bound() {
  const Classes all = some_classes(70, 300, 30, 1.0);
  const Matrix<float> rows = rows_of(all, 150);
  std::vector<Index> which;
  for (Index i = 0; i < rows.rows(); ++i) which.push_back(i);
  const Bounds bounds(all.pointers, 2);
  for (const auto part : {Bounds::Part::kResidual, Bounds::Part::kMahalanobis}) {
    const Index type = part == Bounds::Part::kResidual ? 0 : 1;
    Matrix<float> low(70, rows.rows());
    bounds.find(part, as_rows(rows), which, low);
    Index n_far = 0;
    for (Index c = 0; c < low.rows(); ++c) {
      for (Index i = 0; i < low.cols(); ++i) {
        const double score =
            all.classes[static_cast<std::size_t>(c)].scores(rows.row(i).cast<double>())[type];
        check(low(c, i) <= score * (1 + 1e-12), "bound " + std::to_string(c));
        n_far += low(c, i) > 0.1 * score ? 1 : 0;
      }
    }
    check(n_far > low.size() / 10, "bounds tell something");
  }
}

void rows_at_the_ends_of_float_are_measured() {
  const Classes all = some_classes(5, 40, 4, 1.0);
  Matrix<float> rows = normal(8, 40, 3).cast<float>();
  for (Index i = 0; i < 8; ++i) rows.row(i) *= std::pow(10.0F, static_cast<float>(4 * i + 4));
  check_nearest(all, rows, "large rows");
}

void rows_that_are_not_finite_have_no_class() {
  const Classes all = some_classes(5, 70, 4, 1.0);
  Matrix<float> rows = rows_of(all, 9);
  rows(2, 69) = std::numeric_limits<float>::infinity();
  rows(4, 0) = std::numeric_limits<float>::quiet_NaN();
  const Bounds bounds(all.pointers, 1);
  for (const Bounds* some : {static_cast<const Bounds*>(nullptr), &bounds}) {
    const auto nearest = pydfm::score_nearest(as_rows(rows), all.pointers, some, kTypes, 2);
    for (Index i = 0; i < 9; ++i) {
      const bool bad = i == 2 || i == 4;
      check(std::isnan(nearest.scores(3, i)) == bad, "NaN of row " + std::to_string(i));
      check((nearest.classes(3, i) == -1) == bad, "class of row " + std::to_string(i));
    }
  }
}

}  // namespace

int main() {
  the_nearest_class_is_the_least_of_all();
  bounds_are_below_what_they_bound();
  rows_at_the_ends_of_float_are_measured();
  rows_that_are_not_finite_have_no_class();
  return pydfm::testing::result();
}
