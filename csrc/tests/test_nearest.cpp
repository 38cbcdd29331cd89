#include "stats/nearest.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
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

// Held-out scores of each class: some of its own, of units of one to three rows; class 1 has none.
struct HeldOut {
  HeldOut(const Classes& all, ScoreType type) {
    const auto n = static_cast<Index>(all.pointers.size());
    n_units.resize(n);
    thresholds.resize(n);
    starts.push_back(0);
    for (Index c = 0; c < n; ++c) {
      const RandomClass& own = all.classes[static_cast<std::size_t>(c)];
      const Index count = c == 1 ? 0 : 3 + 2 * c;
      std::vector<float> some;
      for (Index i = 0; i < count; ++i) {
        Eigen::RowVectorXd row =
            own.mean.transpose() +
            normal(1, own.components.rows(), static_cast<unsigned>(i + 7)) * own.components;
        row += 0.1 * normal(1, row.size(), static_cast<unsigned>(i + 50));
        some.push_back(static_cast<float>(own.scores(row)[static_cast<Index>(type)]));
      }
      std::sort(some.begin(), some.end());
      scores.insert(scores.end(), some.begin(), some.end());
      const double weight = 1 / (1.0 + static_cast<double>(c % 3));
      for (Index i = count; i >= 0; --i) weights.push_back(weight * static_cast<double>(i));
      n_units[c] = weight * static_cast<double>(count);
      thresholds[c] = count > 0 ? static_cast<double>(some[some.size() - 2]) : std::nan("");
      starts.push_back(static_cast<std::int64_t>(scores.size()));
    }
  }

  pydfm::HeldOutScores view() const {
    return {scores.data(), weights.data(), starts.data(), pydfm::view(n_units),
            pydfm::view(thresholds)};
  }

  std::vector<float> scores;
  std::vector<double> weights;
  std::vector<std::int64_t> starts;
  pydfm::Vector<double> n_units, thresholds;
};

// Class after class, by the definitions.
void rows_are_judged_as_under_every_class() {
  for (const double spread : {0.0, 0.3, 2.0}) {
    const Classes all = some_classes(9, 70, 5, spread);
    Matrix<float> rows = rows_of(all, 80);
    rows.row(7) *= 1e3F;
    rows.row(8) *= 1e15F;
    rows(9, 3) = std::numeric_limits<float>::quiet_NaN();
    const Bounds bounds(all.pointers, 1);
    for (const ScoreType type : kTypes) {
      const HeldOut held_out(all, type);
      const pydfm::HeldOutScores view = held_out.view();
      for (const Bounds* some : {static_cast<const Bounds*>(nullptr), &bounds}) {
        const auto got = pydfm::judge(as_rows(rows), all.pointers, some, type, view, 2);
        const auto nearest = pydfm::score_nearest(as_rows(rows), all.pointers, some, {type}, 2);
        check(((got.nearest.scores.array() == nearest.scores.array()) ||
               nearest.scores.array().isNaN())
                  .all(),
              "scores that are judged");
        check(got.nearest.classes == nearest.classes, "classes that are judged");
        for (Index i = 0; i < rows.rows(); ++i) {
          double p = std::nan(""), margin = std::nan("");
          for (std::size_t c = 0; c < all.pointers.size(); ++c) {
            const Matrix<float> row = rows.row(i);
            const float score = pydfm::score(as_rows(row), *all.pointers[c], {type}, 1)(0, 0);
            const auto own = static_cast<Index>(c);
            const auto begin = held_out.starts[c], end = held_out.starts[c + 1];
            double above = 0;
            for (auto j = begin; j < end && above == 0; ++j) {
              if (held_out.scores[static_cast<std::size_t>(j)] >= score) {
                above = held_out.weights[static_cast<std::size_t>(j + own)];
              }
            }
            if (begin == end || std::isnan(score)) continue;
            p = std::fmax(p, (1 + above) / (held_out.n_units[own] + 1));
            margin = std::fmax(margin, held_out.thresholds[own] - static_cast<double>(score));
          }
          const std::string name = "row " + std::to_string(i);
          check(got.p_values[i] == p || (std::isnan(p) && std::isnan(got.p_values[i])),
                "p-value of " + name);
          check(got.margins[i] == margin || (std::isnan(margin) && std::isnan(got.margins[i])),
                "margin of " + name);
        }
      }
    }
  }
}

}  // namespace

int main() {
  the_nearest_class_is_the_least_of_all();
  bounds_are_below_what_they_bound();
  rows_at_the_ends_of_float_are_measured();
  rows_that_are_not_finite_have_no_class();
  rows_are_judged_as_under_every_class();
  return pydfm::testing::result();
}
