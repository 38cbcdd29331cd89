#include "pydfm/scoring.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <Eigen/QR>

#include "check.hpp"

namespace {

using pydfm::Index;
using pydfm::Matrix;
using pydfm::Scorer;
using pydfm::ScoreType;
using pydfm::Vector;
using pydfm::view;
using pydfm::testing::check;
using pydfm::testing::check_at_most;
using pydfm::testing::normal;
using pydfm::testing::same;

const std::vector<ScoreType> kTypes{ScoreType::kFre, ScoreType::kMahalanobis, ScoreType::kNll,
                                    ScoreType::kPpca};

struct Class {
  Vector<double> mean;
  Matrix<double> components;
  Vector<double> variances;
  double noise;

  Class(Index d, Index k, unsigned seed, double offset)
      : mean(normal(d, 1, seed).array() + offset), variances(k), noise(0.01) {
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(normal(d, k, seed + 1));
    components = (qr.householderQ() * Eigen::MatrixXd::Identity(d, k)).transpose();
    for (Index i = 0; i < k; ++i) variances[i] = 4.0 / static_cast<double>(i + 1);
  }

  Scorer scorer() const { return Scorer({view(mean), view(components), view(variances), noise}); }

  // The definitions.
  Vector<double> scores(const Eigen::RowVectorXd& row) const {
    const Vector<double> v = row.transpose() - mean;
    const Vector<double> z = components * v;
    const double k = static_cast<double>(z.size());
    const double rest = static_cast<double>(v.size()) - k;
    const double log2pi = std::log(2 * std::acos(-1.0));
    Vector<double> scores(4);
    scores[0] = (v - components.transpose() * z).squaredNorm();
    scores[1] = (z.array().square() / variances.array()).sum();
    scores[2] = 0.5 * (scores[1] + variances.array().log().sum() + k * log2pi);
    scores[3] = scores[2];
    if (rest > 0) scores[3] += 0.5 * (scores[0] / noise + rest * (std::log(noise) + log2pi));
    return scores;
  }
};

template <typename Scalar>
void check_scores(const Class& c, const Matrix<Scalar>& rows, const std::string& what) {
  const Matrix<float> scores = pydfm::score(view(rows), c.scorer(), kTypes, 2);
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
        const Class c(d, k, 1, offset);
        const Matrix<double> rows = normal(150, d, 7).array() + offset;
        const std::string what = std::to_string(d) + ", " + std::to_string(k);
        check_scores(c, rows, what + ", double");
        check_scores(c, Matrix<float>(rows.cast<float>()), what + ", float");
      }
    }
  }
}

void tiny_residuals_are_computed_again() {
  const Class c(300, 20, 3, 0.0);
  for (const double size : {1.0, 1e-3, 1e-6, 1e-9}) {
    const Matrix<double> rows =
        ((normal(40, 20, 5) * c.components).rowwise() + c.mean.transpose()) +
        size * normal(40, 300, 6);
    check_scores(c, rows, "residuals of " + std::to_string(size));
  }
}

void scales_near_the_ends_of_float_are_computed_again() {
  for (const double scale : {1e-17, 1e-12, 1e12, 1e18}) {
    Class c(40, 5, 3, 0.0);
    c.mean *= scale;
    c.variances *= scale * scale;
    c.noise *= scale * scale;
    check_scores(c, Matrix<double>(scale * normal(20, 40, 8)), "scale " + std::to_string(scale));
  }
}

void a_score_depends_on_its_row_alone() {
  const Class c(300, 41, 2, 1.0);
  const Scorer scorer = c.scorer();
  Matrix<float> rows = normal(301, 300, 9).cast<float>();
  rows.row(5) = (c.mean.transpose() + c.components.row(0)).cast<float>();  // computed again
  const Matrix<float> all = pydfm::score(view(rows), scorer, kTypes, 1);
  for (const int n_threads : {2, 3, 8}) {
    check(same(all, pydfm::score(view(rows), scorer, kTypes, n_threads)), "threads");
  }
  for (Index i = 0; i < 20; ++i) {
    const Matrix<float> one = rows.row(i);
    check(same(Matrix<float>(all.col(i)), pydfm::score(view(one), scorer, kTypes, 1)), "one row");
  }
  for (std::size_t t = 0; t < kTypes.size(); ++t) {
    const Matrix<float> one = pydfm::score(view(rows), scorer, {kTypes[t]}, 2);
    check(same(Matrix<float>(all.row(static_cast<Index>(t))), one), "one type");
  }
}

void rows_that_are_not_finite_score_nan() {
  const Class c(70, 4, 2, 0.0);
  Matrix<float> rows = normal(9, 70, 9).cast<float>();
  rows(2, 69) = std::numeric_limits<float>::infinity();
  rows(4, 0) = std::numeric_limits<float>::quiet_NaN();
  const Scorer scorer = c.scorer();
  const Matrix<float> scores = pydfm::score(view(rows), scorer, kTypes, 2);
  const auto nearest = pydfm::score_nearest(view(rows), {&scorer, &scorer}, kTypes, 2);
  for (Index i = 0; i < 9; ++i) {
    const bool bad = i == 2 || i == 4;
    check(std::isnan(scores(0, i)) == bad, "NaN of row " + std::to_string(i));
    check(std::isnan(nearest.scores(3, i)) == bad, "NaN of the nearest");
    check(nearest.classes(3, i) == (bad ? -1 : 0), "class of the nearest");
  }
}

void the_nearest_class_is_the_least_of_all() {
  std::vector<Class> classes;
  for (unsigned c = 0; c < 12; ++c) classes.emplace_back(90, 1 + c, 20 + c, 0.0);
  std::vector<Scorer> scorers;
  for (const Class& c : classes) scorers.push_back(c.scorer());
  std::vector<const Scorer*> pointers;
  for (const Scorer& scorer : scorers) pointers.push_back(&scorer);
  Matrix<float> rows(600, 90);
  for (Index i = 0; i < rows.rows(); ++i) {
    const Class& own = classes[static_cast<std::size_t>(i) % classes.size()];
    const double size = i % 3 == 0 ? 1e-4 : 0.1;  // some need the exact pass
    rows.row(i) = (own.mean.transpose() + own.components.row(0) +
                   size * normal(1, 90, static_cast<unsigned>(i)))
                      .cast<float>();
  }
  const auto nearest = pydfm::score_nearest(view(rows), pointers, kTypes, 2);
  Matrix<float> least = Matrix<float>::Constant(4, 600, std::numeric_limits<float>::max());
  for (const Scorer& scorer : scorers) {
    least = least.cwiseMin(pydfm::score(view(rows), scorer, kTypes, 2));
  }
  check(same(nearest.scores, least), "the least score, to the bit");
  for (Index i = 0; i < 600; ++i) check(nearest.classes(0, i) == i % 12, "whose it is");
  const auto alone = pydfm::score_nearest(view(rows), pointers, kTypes, 1);
  check(same(alone.scores, nearest.scores) && same(alone.classes, nearest.classes), "threads");
}

void no_rows_and_no_components_are_fine() {
  const Class c(5, 2, 1, 0.0);
  check(pydfm::score(view(Matrix<float>(0, 5)), c.scorer(), kTypes, 2).cols() == 0, "no rows");
  const Class empty(5, 0, 1, 0.0);
  const Matrix<double> rows = normal(3, 5, 4);
  const Matrix<float> fre = pydfm::score(view(rows), empty.scorer(), {ScoreType::kFre}, 1);
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
  the_nearest_class_is_the_least_of_all();
  no_rows_and_no_components_are_fine();
  return pydfm::testing::result();
}
