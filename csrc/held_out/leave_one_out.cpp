#include "held_out/leave_one_out.hpp"

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "held_out/model.hpp"
#include "kernels/matrix_products.hpp"
#include "linalg/contour.hpp"
#include "linalg/secular.hpp"
#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

// Rows to a block.
constexpr Index kBlockRows = 64;

// Eigenvalues closer than this, relatively, have no circle between them: a narrower gap would cost
// more nodes, a wider one the roots between, in every row.
constexpr double kNarrowGap = 1e-6;

// The circle leaves this part of the gap within: few roots t_k come down as far.
constexpr double kGapPart = 1.0 / 16;

// Error of a mean over the circle relative to the sum of what it adds up, and relative to itself
// what of that is let pass.
constexpr double kMeanError = 1e-14;
constexpr double kMeanTolerance = 1e-9;

using Complex = std::complex<double>;

// What the scores of a row are made of, with k components; see the header.
struct Sums {
  double residual = 0;     // sum_{j > k}  (u_j'z)^2
  double mahalanobis = 0;  // sum_{j <= k} (u_j'z)^2 / t_j
  double log_ratio = 0;    // sum_{j <= k} ln(t_j / eigenvalue_j)
  double shrinkage = 0;    // sum_{j > k}  (eigenvalue_j - t_j)

  Sums& operator+=(const Sums& other) {
    residual += other.residual;
    mahalanobis += other.mahalanobis;
    log_ratio += other.log_ratio;
    shrinkage += other.shrinkage;
    return *this;
  }
  Sums& operator-=(const Sums& other) {
    return *this += {-other.residual, -other.mahalanobis, -other.log_ratio, -other.shrinkage};
  }
};

// Which of the sums the scores asked for need.
struct WantedSums {
  bool residual = false, mahalanobis = false, log_ratio = false, shrinkage = false;

  explicit WantedSums(const std::vector<ScoreType>& types) {
    for (const ScoreType type : types) {
      residual |= type == ScoreType::kFre || type == ScoreType::kPpca;
      mahalanobis |= type == ScoreType::kMahalanobis;
      log_ratio |= type == ScoreType::kNll || type == ScoreType::kPpca;
      shrinkage |= type == ScoreType::kPpca;
    }
  }
};

// The eigenvalues, a little apart where they are equal, and their negatives, the poles of the
// secular equation 1 + rho sum z_i^2 / (pole_i + t) = 0.
struct Spectrum {
  Vector<double> values;  // (r,)  descending
  Vector<double> poles;   // (r,)  ascending

  explicit Spectrum(const VectorView<double>& eigenvalues) : values(eigenvalues) {
    for (Index i = 1; i < values.size(); ++i) {
      values[i] = std::min(values[i], values[i - 1] * (1 - 4 * kEps));
    }
    poles = -values;
  }
};

// An eigenpair (t, u) of diag(eigenvalues) - rho z z'.
struct Root {
  Index j;
  SecularRoot at;  // -t, among the poles
  double value;    // t
  double energy;   // (u'z)^2
};

// The eigenpairs for one row, one by one.
class Roots {
 public:
  template <typename Row>
  Roots(const Spectrum& spectrum, const Row& z, double rho)
      : spectrum_(spectrum),
        rho_(rho),
        // A coordinate that is zero would have its root at the pole.
        weights_((rho * z.transpose().array().square()).max(1e-40 * spectrum.values[0])) {}

  Root root(Index j) const {
    poll();  // with thousands of roots to a row, a block of rows takes seconds
    const SecularRoot at = secular_root(view(spectrum_.poles), view(weights_), j);
    const double slope = (weights_.array() * at.gaps(spectrum_.poles).inverse().square()).sum();
    return {j, at, -at.value(spectrum_.poles), 1 / (rho_ * slope)};
  }

  // The part of the sums that is this root's.
  Sums sums(const Root& root, Index k) const {
    const double eigenvalue = spectrum_.values[root.j];
    if (root.j < k) return {0, root.energy / root.value, std::log(root.value / eigenvalue), 0};
    return {root.energy, 0, 0, (eigenvalue - spectrum_.values[root.at.origin]) + root.at.offset};
  }

  // That of roots begin, ..., end - 1.
  Sums sums(Index begin, Index end, Index k) const {
    Sums sums;
    for (Index j = begin; j < end; ++j) sums += this->sums(root(j), k);
    return sums;
  }

  // z projected onto the eigenvector, u (u'z), for the row z.
  template <typename Row>
  Eigen::RowVectorXd projection(const Root& root, const Row& z) const {
    const auto inverse = root.at.gaps(spectrum_.poles).inverse().transpose();
    return -rho_ * root.energy * (z.array() * inverse).matrix();
  }

 private:
  const Spectrum& spectrum_;
  double rho_;
  Vector<double> weights_;
};

// The k leading eigenvalues and the others, a circle between them, and means over the circle.
class Cut {
 public:
  Cut(const Spectrum& spectrum, Index k)
      : spectrum_(spectrum),
        k_(k),
        rest_(spectrum.values.tail(spectrum.values.size() - k).sum()),
        begin_(k - 1),
        end_(k) {
    // Roots j < begin are at least values[begin], roots j >= end at most values[end].
    const Vector<double>& values = spectrum.values;
    const Index r = values.size();
    const auto gap = [&](Index i) {
      return i < 0 || i + 1 >= r ? -1.0 : values[i] - values[i + 1];
    };
    while (values[begin_] - values[end_] < kNarrowGap * values[begin_]) {
      if (begin_ == 0 && end_ == r - 1) return;
      gap(begin_ - 1) > gap(end_) ? --begin_ : ++end_;
    }
    top_ = values[end_] + kGapPart * (values[begin_] - values[end_]);
    circle_ = separating_circle(values[end_], top_);
    tau_real_ = circle_->real.array();
    for (double& real : tau_real_) real += circle_->radius;
    resolvent_ = resolvent(view(values), *circle_);
    bounds_.resize(r, 2);
    for (Index i = 0; i < r; ++i) {
      bounds_(i, 0) = std::min(1.0, circle_->radius / values[i]);
      bounds_(i, 1) = 1 / (values[i] - top_);
    }
  }

  // A block of rows, and what is known of them from products of matrices.
  struct Block {
    Matrix<double> z;       // (n, r)
    Matrix<double> f;       // (n, 2 m)  real parts at the nodes, imaginary parts
    Matrix<double> bounds;  // (n, 2)    size of the means' terms; f at the top of the circle's gap
  };

  Block block(const MatrixView<double>& coordinates, Index first, Index count) const {
    Block block{coordinates.middleRows(first, count), {}, {}};
    if (!circle_) return block;
    const Matrix<double> squares = block.z.cwiseAbs2();
    block.f = product(squares, resolvent_);
    block.bounds = product(squares, bounds_);
    return block;
  }

  Sums sums(const Block& block, Index i, double rho, const WantedSums& wanted) const {
    const auto roots = [&] { return Roots(spectrum_, block.z.row(i), rho); };
    const Index r = spectrum_.values.size();
    if (!circle_) return roots().sums(0, r, k_);

    Sums sums = means(block.f.row(i), rho, wanted);
    if (const Index begin = uncertain(block, i, rho); begin < end_) {
      const Roots single = roots();
      for (Index j = begin; j < end_; ++j) {
        const Root root = single.root(j);
        sums -= share(root);
        sums += single.sums(root, k_);
      }
    }
    const double error = kMeanError / kMeanTolerance * block.bounds(i, 0);
    if ((wanted.residual && sums.residual < error) ||
        (wanted.shrinkage && rest_ - sums.shrinkage < rho * error)) {
      const Sums exact = roots().sums(k_, r, k_);
      sums.residual = exact.residual;
      sums.shrinkage = exact.shrinkage;
    }
    if (wanted.mahalanobis && sums.mahalanobis * circle_->radius < error) {
      sums.mahalanobis = roots().sums(0, k_, k_).mahalanobis;
    }
    return sums;
  }

  // z - sum_{j <= k} u_j u_j'z for the rows of the block.
  Matrix<double> residuals(const Block& block, const VectorView<double>& rho) const {
    const Index n = block.z.rows();
    const Index m = circle_ ? n_nodes() : 0;
    Matrix<double> result = Matrix<double>::Zero(n, block.z.cols());
    if (circle_) {
      // -weight tau / w, the factors of (diag(eigenvalues) - tau)^-1 z.
      Matrix<double> factors(n, 2 * m);
      for (Index i = 0; i < n; ++i) {
        for (Index node = 0; node < m; ++node) {
          const Complex w = 1.0 - rho[i] * Complex(block.f(i, node), block.f(i, m + node));
          const Complex factor = -circle_->weights[node] * tau(node) / w;
          factors(i, node) = factor.real();
          factors(i, m + node) = -factor.imag();
        }
      }
      add_product(factors, resolvent_.transpose(), result);
      result.array() *= block.z.array();
    }
    for (Index i = 0; i < n; ++i) {
      const Index begin = circle_ ? uncertain(block, i, rho[i]) : k_;
      const Index end = circle_ ? end_ : spectrum_.values.size();
      if (begin == end) continue;
      const Roots roots(spectrum_, block.z.row(i), rho[i]);
      for (Index j = begin; j < end; ++j) {
        const Root root = roots.root(j);
        const double found = circle_ ? share(root).residual / root.energy : 0;
        const double right = j < k_ ? 0 : 1;
        result.row(i) += (right - found) * roots.projection(root, block.z.row(i));
      }
    }
    return result;
  }

 private:
  Index n_nodes() const { return circle_->weights.size(); }
  Complex tau(Index node) const { return {tau_real_[node], circle_->imag[node]}; }

  // Roots from this one to end_ - 1 may not be where the means take them to be.
  Index uncertain(const Block& block, Index i, double rho) const {
    const bool clear = end_ - begin_ == 1 && 1 - rho * block.bounds(i, 1) > 0;
    return clear ? end_ : begin_;
  }

  template <typename Row>
  Sums means(const Row& f, double rho, const WantedSums& wanted) const {
    const Index m = n_nodes();
    const auto weights = circle_->weights.array();
    const auto tau_imag = circle_->imag.array();
    const auto f_real = f.head(m).transpose().array();
    const auto f_imag = f.tail(m).transpose().array();
    const Eigen::ArrayXd w_real = 1 - rho * f_real;
    const Eigen::ArrayXd w_imag = -rho * f_imag;
    const Eigen::ArrayXd w2 = w_real.square() + w_imag.square();
    const Eigen::ArrayXd h_real = (f_real * w_real + f_imag * w_imag) / w2;
    const Eigen::ArrayXd h_imag = (f_imag * w_real - f_real * w_imag) / w2;
    Sums sums;
    sums.residual = -(weights * (tau_real_ * h_real - tau_imag * h_imag)).sum();
    sums.mahalanobis = (weights * h_real).sum();
    if (wanted.log_ratio) {
      const Eigen::ArrayXd log = w2.log() / 2;
      sums.log_ratio = (weights * log).sum();
      if (wanted.shrinkage) {
        const auto atan2 = [](double y, double x) { return std::atan2(y, x); };
        sums.shrinkage =
            (weights * (tau_real_ * log - tau_imag * w_imag.binaryExpr(w_real, atan2))).sum();
      }
    }
    return sums;
  }

  // What a root, with the eigenvalue of its index, contributes to the means.
  Sums share(const Root& root) const {
    const Vector<double>& values = spectrum_.values;
    const double t = (values[root.at.origin] - circle_->radius) - root.at.offset;
    const double l = values[root.j] - circle_->radius;
    Sums sums;
    for (Index m = 0; m < n_nodes(); ++m) {
      const Complex node(circle_->real[m], circle_->imag[m]);
      const Complex inverse = root.energy / (t - node);
      // Both arguments are in (-pi, 0): their difference is the logarithm's own branch.
      const Complex log = std::log(t - node) - std::log(l - node);
      sums +=
          {-circle_->weights[m] * (tau(m) * inverse).real(), circle_->weights[m] * inverse.real(),
           circle_->weights[m] * log.real(), circle_->weights[m] * (tau(m) * log).real()};
    }
    return sums;
  }

  const Spectrum& spectrum_;
  Index k_;
  double rest_;        // sum of the eigenvalues left out
  Index begin_, end_;  // the roots that may be on either side of the circle
  double top_ = 0;     // roots above this are outside
  std::optional<Circle> circle_;
  Eigen::ArrayXd tau_real_;
  Matrix<double> resolvent_;  // (r, 2 m)  1 / (eigenvalue - tau): real parts, imaginary parts
  Matrix<double> bounds_;     // (r, 2)    min(1, radius / eigenvalue), 1 / (eigenvalue - top)
};

// All that is common to the rows: the spectrum, and the circle for k components.
class LeftOut {
 public:
  LeftOut(const TrainingRows& rows, Index n_components)
      : rows_(rows), spectrum_(checked(rows, n_components)), whole_(n_components == rank()) {
    k_ = whole_ ? std::max<Index>(rank() - 1, 0) : n_components;
    if (k_ > 0) cut_.emplace(spectrum_, k_);
  }
  LeftOut(const LeftOut&) = delete;
  LeftOut& operator=(const LeftOut&) = delete;

  const Spectrum& spectrum() const { return spectrum_; }

  double largest_root(Index row) const {
    return Roots(spectrum_, rows_.coordinates.row(row), rows_.rho[row]).root(0).value;
  }

  // Calls `visit(row, sums, k)` for every row, in no order.
  template <typename Visit>
  void for_each_row(const WantedSums& wanted, int n_threads, const Visit& visit) const {
    parallel_blocks(rows_.coordinates.rows(), kBlockRows, n_threads, [&](Index first, Index count) {
      std::optional<Cut::Block> block;
      for (Index i = 0; i < count; ++i) {
        const Index row = first + i;
        const double rho = rows_.rho[row];
        if (keeps_all(row)) {
          const double f = leverage(row, 0);
          visit(row, Sums{0, f / (1 - rho * f), std::log1p(-rho * f), 0}, rank());
        } else if (cut_) {
          if (!block) block = cut_->block(rows_.coordinates, first, count);
          visit(row, cut_->sums(*block, i, rho, wanted), k_);
        } else {
          visit(row, Sums{rows_.coordinates.row(row).squaredNorm(), 0, 0, 0}, Index{0});
        }
      }
    });
  }

  Matrix<double> residuals(int n_threads) const {
    Matrix<double> result(rows_.coordinates.rows(), rank());
    parallel_blocks(rows_.coordinates.rows(), kBlockRows, n_threads, [&](Index first, Index count) {
      auto part = result.middleRows(first, count);
      const VectorView<double> rho(rows_.rho.data() + first, count);
      if (cut_) {
        part = cut_->residuals(cut_->block(rows_.coordinates, first, count), rho);
      } else {
        part = rows_.coordinates.middleRows(first, count);
      }
      for (Index i = 0; i < count; ++i) {
        if (keeps_all(first + i)) {
          part.row(i).setZero();
        } else {
          part.row(i) *= rho[i];
        }
      }
    });
    return result;
  }

 private:
  static const VectorView<double>& checked(const TrainingRows& rows, Index k) {
    check_spectrum(rows.eigenvalues, rows.resolution, k);
    const auto good = [](double rho) { return rho > 0 && std::isfinite(rho); };
    if (!std::all_of(rows.rho.data(), rows.rho.data() + rows.rho.size(), good)) {
      throw std::invalid_argument("rho must be positive and finite");
    }
    return rows.eigenvalues;
  }

  Index rank() const { return rows_.eigenvalues.size(); }

  // f(t); at t = 0 and times rho it is one for a row that alone fills a direction.
  double leverage(Index row, double t) const {
    return (rows_.coordinates.row(row).transpose().array().square() /
            (rows_.eigenvalues.array() - t))
        .sum();
  }

  // Whether k = r, and the smallest t_r is above the resolution: where w is positive, no eigenvalue
  // has come down past it.
  bool keeps_all(Index row) const {
    if (!whole_ || rank() == 0) return false;
    const double rounding = 8 * kEps * static_cast<double>(rank());
    return 1 - rows_.rho[row] * leverage(row, 0) > rounding &&
           1 - rows_.rho[row] * leverage(row, rows_.resolution) > 0;
  }

  const TrainingRows& rows_;
  Spectrum spectrum_;
  bool whole_;
  Index k_;
  std::optional<Cut> cut_;
};

// Scores from sums.
class Scores {
 public:
  Scores(const Spectrum& spectrum, const RemainingModel& model, double resolution)
      : model_(model),
        resolution_(resolution),
        logs_(spectrum.values.size() + 1),
        rests_(spectrum.values.size() + 1) {
    const Index r = spectrum.values.size();
    logs_[0] = 0;
    for (Index i = 0; i < r; ++i) logs_[i + 1] = logs_[i] + std::log(spectrum.values[i]);
    rests_[r] = 0;
    for (Index i = r; i > 0; --i) rests_[i - 1] = rests_[i] + spectrum.values[i - 1];
  }

  double score(ScoreType type, const Sums& sums, Index k, double rho, double noise) const {
    const double dof = model_.degrees_of_freedom;
    const double logs = logs_[k] + sums.log_ratio - static_cast<double>(k) * std::log(dof);
    const HeldOutModel left{k, logs, noise, model_.n_features};
    return left.score(type, rho * rho * sums.residual, rho * rho * sums.mahalanobis * dof);
  }

  // The mean of the variances left out, and what it must not fall below for a largest t_j.
  double noise(const Sums& sums, Index k) const {
    const double n = static_cast<double>(std::max<Index>(model_.n_variances - k, 1));
    const double rest = rests_[k] - sums.shrinkage;
    return rest > resolution_ ? rest / n / model_.degrees_of_freedom : 0;
  }
  double noise_floor(double largest) const {
    return static_cast<double>(model_.n_features) * kEps * largest / model_.degrees_of_freedom;
  }

 private:
  const RemainingModel& model_;
  double resolution_;
  Vector<double> logs_;   // (r + 1,)  sum_{i <= k} ln eigenvalue_i
  Vector<double> rests_;  // (r + 1,)  sum_{i > k} eigenvalue_i
};

}  // namespace

Matrix<double> leave_one_out(const TrainingRows& rows, const RemainingModel& model,
                             const std::vector<ScoreType>& types, int n_threads) {
  const LeftOut left_out(rows, model.n_components);
  const Scores scores(left_out.spectrum(), model, rows.resolution);
  const WantedSums wanted(types);
  Matrix<double> result(static_cast<Index>(types.size()), rows.coordinates.rows());
  left_out.for_each_row(wanted, n_threads, [&](Index row, const Sums& sums, Index k) {
    double noise = 0;
    if (wanted.shrinkage && k > 0 && k < model.n_features) {
      noise = scores.noise(sums, k);
      if (noise < scores.noise_floor(rows.eigenvalues[0])) {
        noise = std::max(noise, scores.noise_floor(left_out.largest_root(row)));
      }
    }
    for (std::size_t t = 0; t < types.size(); ++t) {
      result(static_cast<Index>(t), row) = scores.score(types[t], sums, k, rows.rho[row], noise);
    }
  });
  return result;
}

Matrix<double> leave_one_out_residuals(const TrainingRows& rows, Index n_components,
                                       int n_threads) {
  return LeftOut(rows, n_components).residuals(n_threads);
}

}  // namespace pydfm
