#include "held_out/leave_groups_out.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "held_out/downdate.hpp"
#include "held_out/model.hpp"
#include "kernels/matrix_products.hpp"
#include "linalg/eigensolver.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

constexpr double kRoundingUnit = std::numeric_limits<double>::epsilon();
// What a product of two rows costs, at all nodes of a circle, where r^2 is the decomposition.
constexpr Index kProductCost = 256;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A group that is left out, and the rows that are scored without it.
struct Group {
  Matrix<double> update;  // (m, r)  U', where the scatter loses U U'
  Matrix<double> scored;  // (s, r)  deviations from the mean that is left
  bool known;             // whether they are finite, and there is such a mean
};

// The leading eigenpairs of the scatter without a group, and all eigenvalues that are not zero.
struct Remaining {
  Vector<double> values;   // (rank,)  descending
  Matrix<double> vectors;  // (k, r)   k <= rank

  Index n_components() const { return vectors.rows(); }

  // v - W W'v for the rows v of `deviations`, of which `coordinates` are W'v.
  Matrix<double> residuals(const Matrix<double>& deviations,
                           const Matrix<double>& coordinates) const {
    // None is outside all of the space; and twice, since once leaves some eps |v|.
    if (vectors.rows() == vectors.cols()) {
      return Matrix<double>::Zero(deviations.rows(), deviations.cols());
    }
    Matrix<double> residuals = deviations;
    add_product(coordinates, vectors, residuals, -1);
    add_product(product(residuals, vectors.transpose()), vectors, residuals, -1);
    return residuals;
  }
};

class Groups {
 public:
  Groups(const TrainingGroups& training, const std::optional<RowGroups>& scored, Index n_components)
      : training_(training),
        scored_(scored ? *scored : training.groups),
        own_(!scored),
        n_components_(n_components),
        zero_(training.resolution) {
    check_spectrum(training.eigenvalues, training.resolution, n_components);
    check_starts(training.groups, "starts");
    check_starts(scored_, "scored_starts");
    const auto& starts = training.groups.starts;
    for (Index g = 0; g < size(); ++g) {
      const std::int64_t m = starts[g + 1] - starts[g];
      if (!(training.class_sizes[g] >= static_cast<double>(m) &&
            std::isfinite(training.class_sizes[g]))) {
        throw std::invalid_argument("class_sizes has " + std::to_string(training.class_sizes[g]) +
                                    " for group " + std::to_string(g) + " of " + std::to_string(m) +
                                    " rows; it must be finite and at least that");
      }
      if (!std::isfinite(training.degrees_of_freedom[g])) {
        throw std::invalid_argument("degrees_of_freedom must be finite");
      }
    }
    const auto r = static_cast<double>(training.eigenvalues.size());
    if (r > 0) zero_ = std::max(zero_, 8 * r * kRoundingUnit * training.eigenvalues[0]);
  }

  // Sums for the group's scored rows from products of two rows, where these take less time, and no
  // more memory, than to decompose the matrix, and all digits are certain.
  std::optional<SpectralSums> sums(const Group& group, Index g, bool residuals) const {
    const Index m = group.update.rows();
    const Index n_products = m * (m + 1) / 2 + group.scored.rows() * (m + 1);
    if (m == 0 || n_products > std::min(4 * rank(), rank() * rank() / kProductCost)) {
      return std::nullopt;
    }
    return Downdate(training_.eigenvalues, group.update)
        .sums(group.scored, n_components_, most_directions(g), zero_, residuals);
  }

  // The largest eigenvalue, with all groups and without one.
  double largest() const { return training_.eigenvalues[0]; }
  double largest(const Group& group) const {
    return Downdate(training_.eigenvalues, group.update).largest(zero_);
  }

  Index size() const { return training_.class_sizes.size(); }
  Index n_scored() const { return scored_.rows.rows(); }
  Index rank() const { return training_.eigenvalues.size(); }
  double degrees(Index g) const { return std::max(training_.degrees_of_freedom[g], 1.0); }

  // Calls `visit(g, group, first)` for each group without which rows are scored, from row `first`.
  template <typename Visit>
  void for_each(int n_threads, const Visit& visit) const {
    parallel_for(size(), n_threads, [&](Index g) {
      const Index first = scored_.starts[g];
      if (scored_.starts[g + 1] > first) visit(g, group(g), first);
    });
  }

  // The eigenvalues that the leading ones leave without a group.
  double rest(Index g) const {
    Group group = this->group(g);
    if (!group.known) return kNaN;
    group.scored.resize(0, rank());
    if (const std::optional<SpectralSums> found = sums(group, g, false)) return found->rest;
    const Remaining left = remaining(group, g);
    return left.values.tail(left.values.size() - left.n_components()).sum();
  }

  Remaining remaining(const Group& group, Index g) const {
    Matrix<double> scatter = training_.eigenvalues.asDiagonal();
    add_product(group.update.transpose(), group.update, scatter, -1);
    const Index most = most_directions(g);
    Eigenpairs pairs = eigh(view(scatter), {std::min(n_components_, most)}, 1);
    const auto zero = [&](double value) { return value <= zero_; };
    const double* const values = pairs.values.data();
    const Index rank = std::find_if(values, values + most, zero) - values;
    const Index k = std::min(n_components_, rank);
    return {pairs.values.head(rank), pairs.vectors.topRows(k)};
  }

 private:
  void check_starts(const RowGroups& groups, const std::string& name) const {
    const auto& starts = groups.starts;
    const bool ends_meet = starts.size() == size() + 1 && starts[0] == 0 &&
                           starts[size()] == static_cast<std::int64_t>(groups.rows.rows());
    if (!ends_meet || !std::is_sorted(starts.data(), starts.data() + starts.size())) {
      throw std::invalid_argument(name + " must ascend from 0 to the number of rows, " +
                                  std::to_string(groups.rows.rows()));
    }
  }

  Group group(Index g) const {
    const auto rows = [g](const RowGroups& groups) {
      return groups.rows.middleRows(groups.starts[g], groups.starts[g + 1] - groups.starts[g]);
    };
    Group group{rows(training_.groups), rows(scored_), true};
    const auto m = static_cast<double>(group.update.rows());
    const double left = training_.class_sizes[g] - m;
    if (m > 0 && left > 0) {
      const Eigen::RowVectorXd mean = group.update.colwise().mean();
      group.update.rowwise() += (std::sqrt(training_.class_sizes[g] / left) - 1) * mean;
      if (own_) group.scored.rowwise() += m / left * mean;
    }
    group.known = (left > 0 || !own_) && std::isfinite(group.update.squaredNorm());
    return group;
  }

  // As many directions as there are degrees of freedom have variance, at most.
  Index most_directions(Index g) const {
    const double most =
        std::clamp(training_.degrees_of_freedom[g], 0.0, static_cast<double>(rank()));
    return static_cast<Index>(most);
  }

  const TrainingGroups& training_;
  const RowGroups& scored_;
  bool own_;
  Index n_components_;
  double zero_;
};

// The weight alpha that shrinkage gives to the mean of the variances `values` and zeros (Chen et
// al. 2010, equation 23).
double shrinkage(const Vector<double>& values, double mean, double n_features, double degrees) {
  const double square = values.squaredNorm() / n_features;
  const double spread = square - mean * mean;
  if (!(spread > 0)) return 1;
  return std::min((square / n_features + mean * mean) / ((degrees + 2) * spread / n_features), 1.0);
}

// Variances of a model without a group, as a fit of the other rows has them.
struct Variances {
  Vector<double> components;  // (k,)
  double noise;

  Variances(const Remaining& remaining, Index n_variances, double degrees,
            const GroupModels& models) {
    const Vector<double> all = remaining.values / degrees;
    const Index k = remaining.n_components();
    const auto d = static_cast<double>(models.n_features);
    components = all.head(k);
    if (k == 0) {
      noise = 0;
      return;
    }
    const Index rest = std::max<Index>(n_variances - k, 1);
    noise = std::max(all.tail(all.size() - k).sum() / static_cast<double>(rest),
                     d * kRoundingUnit * all[0]);
    if (models.regularization.shrinkage) {
      const double mean = all.sum() / d;
      const double alpha = shrinkage(all, mean, d, degrees);
      components = (1 - alpha) * components.array() + alpha * mean;
      noise = (1 - alpha) * noise + alpha * mean;
    } else {
      const double least = models.regularization.floor * all[0];
      components = components.cwiseMax(least);
      noise = std::max(noise, least);
    }
  }
};

// The model without a group, and the energies of the rows that are scored under it.
struct RowsWithout {
  HeldOutModel model;
  Vector<double> fre, mahalanobis;
};

RowsWithout rows_without(const Groups& groups, const Group& group, Index g,
                         const GroupModels& models) {
  const double degrees = groups.degrees(g);
  const bool regularised = models.regularization.shrinkage || models.regularization.floor > 0;
  if (!regularised) {
    if (const std::optional<SpectralSums> sums = groups.sums(group, g, false)) {
      const auto k = static_cast<double>(sums->k);
      const auto rest = static_cast<double>(std::max<Index>(models.n_variances[g] - sums->k, 1));
      const double least = static_cast<double>(models.n_features) * kRoundingUnit / degrees;
      double noise = sums->rest / rest / degrees;
      if (noise < least * groups.largest()) noise = std::max(noise, least * groups.largest(group));
      return {{sums->k, sums->logs - k * std::log(degrees), noise, models.n_features},
              sums->residual,
              degrees * sums->precision};
    }
  }
  const Remaining remaining = groups.remaining(group, g);
  const Variances variances(remaining, models.n_variances[g], degrees, models);
  const Matrix<double> coordinates = product(group.scored, remaining.vectors.transpose());
  return {{remaining.n_components(), variances.components.array().log().sum(), variances.noise,
           models.n_features},
          remaining.residuals(group.scored, coordinates).rowwise().squaredNorm(),
          coordinates.cwiseAbs2() * variances.components.cwiseInverse()};
}

void check_models(const GroupModels& models, Index n_groups) {
  const Regularization& regularization = models.regularization;
  if (!(regularization.floor >= 0 && regularization.floor <= 1)) {
    throw std::invalid_argument("floor is " + std::to_string(regularization.floor) +
                                "; it must be from 0 to 1");
  }
  if (regularization.shrinkage && regularization.floor > 0) {
    throw std::invalid_argument("shrinkage and floor cannot both be asked for");
  }
  if (models.n_variances.size() != n_groups) {
    throw std::invalid_argument("n_variances must have one number for each group");
  }
}

}  // namespace

Matrix<double> leave_groups_out(const TrainingGroups& training,
                                const std::optional<RowGroups>& scored, const GroupModels& models,
                                const std::vector<ScoreType>& types, int n_threads) {
  const Groups groups(training, scored, models.n_components);
  check_models(models, groups.size());
  const auto n_types = static_cast<Index>(types.size());
  Matrix<double> result = Matrix<double>::Constant(n_types, groups.n_scored(), kNaN);
  groups.for_each(n_threads, [&](Index g, const Group& group, Index first) {
    if (!group.known) return;
    const RowsWithout rows = rows_without(groups, group, g, models);
    const bool has_variances = training.degrees_of_freedom[g] >= 1;
    for (Index t = 0; t < n_types; ++t) {
      const ScoreType type = types[static_cast<std::size_t>(t)];
      if (type != ScoreType::kFre && !has_variances) continue;
      for (Index i = 0; i < rows.fre.size(); ++i) {
        result(t, first + i) = rows.model.score(type, rows.fre[i], rows.mahalanobis[i]);
      }
    }
  });
  return result;
}

Matrix<double> leave_groups_out_residuals(const TrainingGroups& training,
                                          const std::optional<RowGroups>& scored,
                                          Index n_components, int n_threads) {
  const Groups groups(training, scored, n_components);
  Matrix<double> result = Matrix<double>::Constant(groups.n_scored(), groups.rank(), kNaN);
  groups.for_each(n_threads, [&](Index g, const Group& group, Index first) {
    if (!group.known) return;
    auto own = result.middleRows(first, group.scored.rows());
    if (const std::optional<SpectralSums> sums = groups.sums(group, g, true)) {
      own = sums->residuals;
      return;
    }
    const Remaining remaining = groups.remaining(group, g);
    const Matrix<double> coordinates = product(group.scored, remaining.vectors.transpose());
    own = remaining.residuals(group.scored, coordinates);
  });
  return result;
}

Vector<double> leave_groups_out_rests(const TrainingGroups& training, Index n_components,
                                      int n_threads) {
  const Groups groups(training, std::nullopt, n_components);
  Vector<double> result(groups.size());
  parallel_for(groups.size(), n_threads, [&](Index g) { result[g] = groups.rest(g); });
  return result;
}

}  // namespace pydfm
