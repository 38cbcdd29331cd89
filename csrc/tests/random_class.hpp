// A class with orthonormal random components, and its scores by their definitions.
#pragma once

#include <cmath>
#include <vector>

#include <Eigen/QR>

#include "check.hpp"
#include "stats/scoring.hpp"

namespace pydfm::testing {

inline const std::vector<ScoreType> kTypes{ScoreType::kFre, ScoreType::kMahalanobis,
                                           ScoreType::kNll, ScoreType::kPpca};

struct RandomClass {
  Vector<double> mean;
  Matrix<double> components;
  Vector<double> variances;
  double noise;

  RandomClass(Index d, Index k, unsigned seed, double offset)
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

}  // namespace pydfm::testing
