#include "stats/scoring.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "random_class.hpp"

namespace {

using pydfm::as_rows;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::Scorer;
using pydfm::ScoreType;
using pydfm::Vector;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::kTypes;
using pydfm::testing::normal;
using pydfm::testing::RandomClass;
using pydfm::testing::same;

template <typename Scalar>
void check_scores(const RandomClass& c, const Matrix<Scalar>& rows, const std::string& what) {
  const Matrix<float> scores = pydfm::score(as_rows(rows), c.scorer(), kTypes, 2);
  double worst = 0;
  for (Index i = 0; i < rows.rows(); ++i) {
    const Vector<double> expected = c.scores(rows.row(i).template cast<double>());
    const Vector<double> error = (scores.col(i).template cast<double>() - expected).cwiseAbs();
    // Where the subspace is the whole space, the residual is rounding.
    const Index first = c.components.rows() == c.components.cols() ? 1 : 0;
    for (Index t = first; t < 4; ++t) {
      worst = std::max(worst, error[t] / std::abs(expected[t]));
    }
  }
  check_at_most(worst, 1e-4, what);
}

void scores_are_those_of_the_definition() {
  for (const Index d : {1, 3, 17, 64, 255, 256, 257, 700}) {
    for (const Index k : {Index{1}, d / 3, d / 2, d}) {
      if (k < 1) continue;
      for (const double offset : {0.0, 1e4}) {
        const RandomClass c(d, k, 1, offset);
        const Matrix<double> rows = normal(150, d, 7).array() + offset;
        const std::string what = std::to_string(d) + ", " + std::to_string(k);
        check_scores(c, rows, what + ", double");
        check_scores(c, Matrix<float>(rows.cast<float>()), what + ", float");
      }
    }
  }
}

void tiny_residuals_are_computed_again() {
  const RandomClass c(300, 20, 3, 0.0);
  for (const double size : {1.0, 1e-3, 1e-6, 1e-9}) {
    const Matrix<double> rows =
        ((normal(40, 20, 5) * c.components).rowwise() + c.mean.transpose()) +
        size * normal(40, 300, 6);
    check_scores(c, rows, "residuals of " + std::to_string(size));
  }
}

void scales_near_the_ends_of_float_are_computed_again() {
  for (const double scale : {1e-17, 1e-12, 1e12, 1e18}) {
    RandomClass c(40, 5, 3, 0.0);
    c.mean *= scale;
    c.variances *= scale * scale;
    c.noise *= scale * scale;
    check_scores(c, Matrix<double>(scale * normal(20, 40, 8)), "scale " + std::to_string(scale));
  }
}

void a_score_depends_on_its_row_alone() {
  const RandomClass c(300, 41, 2, 1.0);
  const Scorer scorer = c.scorer();
  Matrix<float> rows = normal(301, 300, 9).cast<float>();
  rows.row(5) = (c.mean.transpose() + c.components.row(0)).cast<float>();  // computed again
  const Matrix<float> all = pydfm::score(as_rows(rows), scorer, kTypes, 1);
  for (const int n_threads : {2, 3, 8}) {
    check(same(all, pydfm::score(as_rows(rows), scorer, kTypes, n_threads)), "threads");
  }
  for (Index i = 0; i < 20; ++i) {
    const Matrix<float> one = rows.row(i);
    check(same(Matrix<float>(all.col(i)), pydfm::score(as_rows(one), scorer, kTypes, 1)),
          "one row");
  }
  for (std::size_t t = 0; t < kTypes.size(); ++t) {
    const Matrix<float> one = pydfm::score(as_rows(rows), scorer, {kTypes[t]}, 2);
    check(same(Matrix<float>(all.row(static_cast<Index>(t))), one), "one type");
  }
}

void rows_that_are_not_finite_score_nan() {
  const RandomClass c(70, 4, 2, 0.0);
  Matrix<float> rows = normal(9, 70, 9).cast<float>();
  rows(2, 69) = std::numeric_limits<float>::infinity();
  rows(4, 0) = std::numeric_limits<float>::quiet_NaN();
  const Scorer scorer = c.scorer();
  const Matrix<float> scores = pydfm::score(as_rows(rows), scorer, kTypes, 2);
  for (Index i = 0; i < 9; ++i) {
    const bool bad = i == 2 || i == 4;
    check(std::isnan(scores(0, i)) == bad, "NaN of row " + std::to_string(i));
  }
}

void no_rows_and_no_components_are_fine() {
  const RandomClass c(5, 2, 1, 0.0);
  check(pydfm::score(as_rows(Matrix<float>(0, 5)), c.scorer(), kTypes, 2).cols() == 0, "no rows");
  const RandomClass empty(5, 0, 1, 0.0);
  const Matrix<double> rows = normal(3, 5, 4);
  const Matrix<float> fre = pydfm::score(as_rows(rows), empty.scorer(), {ScoreType::kFre}, 1);
  const double expected = (rows.row(1) - empty.mean.transpose()).squaredNorm();
  check_at_most(std::abs(fre(0, 1) - expected), 1e-5 * expected, "no components");
}

}  // namespace

int main() {
  scores_are_those_of_the_definition();
  tiny_residuals_are_computed_again();
  scales_near_the_ends_of_float_are_computed_again();
  a_score_depends_on_its_row_alone();
  rows_that_are_not_finite_score_nan();
  no_rows_and_no_components_are_fine();
  return pydfm::testing::result();
}
