#include "stats/nearest.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>

#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

namespace pydfm {

namespace {

// Rows to a block, whose rows are taken class by class: many, so that a class's components are read
// for many rows at once; but some blocks for each thread, and not too many bounds.
constexpr Index kMostBlockRows = 2048;
constexpr Index kBlocksPerThread = 4;
constexpr Index kMostBounds = Index{1} << 22;
// Bounds that leave more than this share of the pairs of a row and a class do not pay.
constexpr double kMostLeft = 0.75;
// Scores may differ by this share of themselves, which is twice what is allowed of float32
// products, and of what they are sums of, for float64.
constexpr double kScoreSlack = 1e-4;
constexpr double kExactSlack = 1e-7;

Index block_rows(Index n_rows, Index n_classes, int n_threads) {
  const Index n_blocks = kBlocksPerThread * std::max(n_threads, 1);
  const Index most = std::min(kMostBlockRows, kMostBounds / std::max<Index>(n_classes, 1));
  return std::max(kTileRows, std::min((n_rows + n_blocks - 1) / n_blocks, most));
}

// Which bounds a score of this type takes: that on fre is most of ppca's.
Bounds::Part part_of(ScoreType type) {
  const bool residual = type == ScoreType::kFre || type == ScoreType::kPpca;
  return residual ? Bounds::Part::kResidual : Bounds::Part::kMahalanobis;
}

// The nearest classes of a block of rows, as they are found class by class, in any order.
class Block {
 public:
  Block(const RowsView& rows, Index first, Index count, const std::vector<const Scorer*>& scorers,
        const std::vector<ScoreType>& types, const HeldOutScores* held_out)
      : rows_(rows), scorers_(scorers), types_(types), held_out_(held_out), tile_(count) {
    for (Index i = first; i < first + count; ++i) {
      if (is_finite(rows, i)) which_.push_back(i);
    }
    const auto n_types = static_cast<Index>(types.size());
    least_.setConstant(n_types, n(), std::numeric_limits<double>::infinity());
    classes_.setConstant(n_types, n(), -1);
    if (held_out_ != nullptr) {
      p_values_.setConstant(n(), std::numeric_limits<double>::quiet_NaN());
      margins_.setConstant(n(), std::numeric_limits<double>::quiet_NaN());
    }
  }

  Index n() const { return static_cast<Index>(which_.size()); }

  void measure_all() {
    std::vector<Index> all(which_.size());
    for (Index i = 0; i < n(); ++i) all[static_cast<std::size_t>(i)] = i;
    for (std::size_t c = 0; c < scorers_.size(); ++c) measure(c, all);
  }

  // The same result, with fewer measurements; returns their share.
  double measure_where_near(const Bounds& bounds) {
    find_bounds(bounds);
    Index n_measured = measure_first_guesses();
    std::vector<Index> some;
    for (std::size_t c = 0; c < scorers_.size(); ++c) {
      find_near(c, some);
      n_measured += static_cast<Index>(some.size());
      measure(c, some);
    }
    const double n_pairs = static_cast<double>(n()) * static_cast<double>(scorers_.size());
    return static_cast<double>(n_measured) / std::max(n_pairs, 1.0);
  }

  void write(NearestClasses& result) const {
    for (Index i = 0; i < n(); ++i) {
      const Index to = which_[static_cast<std::size_t>(i)];
      result.scores.col(to) = least_.col(i).unaryExpr(&to_score);
      result.classes.col(to) = classes_.col(i);
    }
  }

  void write(JudgedRows& result) const {
    write(result.nearest);
    for (Index i = 0; i < n(); ++i) {
      const Index to = which_[static_cast<std::size_t>(i)];
      result.p_values[to] = p_values_[i];
      result.margins[to] = margins_[i];
    }
  }

 private:
  Matrix<float>& low(ScoreType type) {
    return part_of(type) == Bounds::Part::kResidual ? low_residual_ : low_mahalanobis_;
  }

  void find_bounds(const Bounds& bounds) {
    for (const ScoreType type : types_) {
      Matrix<float>& found = low(type);
      if (found.size() > 0) continue;
      found.resize(static_cast<Index>(scorers_.size()), n());
      bounds.find(part_of(type), rows_, which_, found);
    }
  }

  // Lower bounds of the scores of class c.
  Eigen::ArrayXd low_scores(std::size_t c, ScoreType type) const {
    const auto row = static_cast<Index>(c);
    const auto part = [&](const Matrix<float>& bounds) -> Eigen::ArrayXd {
      if (bounds.size() == 0) return Eigen::ArrayXd::Zero(n());
      return bounds.row(row).transpose().array().template cast<double>();
    };
    return scorers_[c]->value(type, part(low_residual_), part(low_mahalanobis_));
  }

  // Each row under the class with its lowest bound; returns how many pairs that makes.
  Index measure_first_guesses() {
    const auto n_classes = scorers_.size();
    const auto n_types = static_cast<Index>(types_.size());
    Matrix<int> guesses = Matrix<int>::Zero(n_types, n());
    for (Index t = 0; t < n_types; ++t) {
      Eigen::ArrayXd lowest =
          Eigen::ArrayXd::Constant(n(), std::numeric_limits<double>::infinity());
      for (std::size_t c = 0; c < n_classes; ++c) {
        const Eigen::ArrayXd scores = low_scores(c, types_[static_cast<std::size_t>(t)]);
        for (Index i = 0; i < n(); ++i) {
          guesses(t, i) = scores[i] < lowest[i] ? static_cast<int>(c) : guesses(t, i);
          lowest[i] = std::min(scores[i], lowest[i]);
        }
      }
    }
    std::vector<std::vector<Index>> guessed(n_classes);
    for (Index i = 0; i < n(); ++i) {
      for (Index t = 0; t < n_types; ++t) {
        const int c = guesses(t, i);
        const bool known = (guesses.col(i).head(t).array() == c).any();
        if (!known) guessed[static_cast<std::size_t>(c)].push_back(i);
      }
    }
    Index n_measured = 0;
    for (std::size_t c = 0; c < n_classes; ++c) {
      measure(c, guessed[c]);
      n_measured += static_cast<Index>(guessed[c].size());
      for (const Index i : guessed[c]) set_measured(c, i);
    }
    return n_measured;
  }

  void set_measured(std::size_t c, Index i) {
    for (Matrix<float>* bounds : {&low_residual_, &low_mahalanobis_}) {
      if (bounds->size() > 0) {
        (*bounds)(static_cast<Index>(c), i) = std::numeric_limits<float>::infinity();
      }
    }
  }

  // Rows of which class c may be the nearest, unless they are measured already.
  void find_near(std::size_t c, std::vector<Index>& some) {
    Eigen::Array<bool, Eigen::Dynamic, 1> wanted = Eigen::Array<bool, Eigen::Dynamic, 1>::Zero(n());
    for (std::size_t t = 0; t < types_.size(); ++t) {
      const double rest = std::abs(scorers_[c]->value(types_[t], Energies{}));
      const auto least = least_.row(static_cast<Index>(t)).transpose().array();
      // Never far where a number is not one.
      const Eigen::ArrayXd low = low_scores(c, types_[t]);
      wanted = wanted || !(low > least + kScoreSlack * least.abs() + kExactSlack * rest);
      if (held_out_ == nullptr) continue;
      for (Index i = 0; i < n(); ++i) {
        if (wanted[i] || std::isinf(low[i])) continue;  // measured already
        const double slack = kScoreSlack * std::abs(low[i]) + kExactSlack * rest;
        wanted[i] = may_decide(c, i, low[i] - slack);
      }
    }
    some.clear();
    for (Index i = 0; i < n(); ++i) {
      if (wanted[i]) some.push_back(i);
    }
  }

  // The rows `some` of this block under class c.
  void measure(std::size_t c, const std::vector<Index>& some) {
    const auto n_some = static_cast<Index>(some.size());
    std::array<Index, kTileRows> rows;
    for (Index first = 0; first < n_some; first += kTileRows) {
      poll();
      const Index* const block = some.data() + first;
      const Index count = std::min(kTileRows, n_some - first);
      for (Index i = 0; i < count; ++i) {
        rows[static_cast<std::size_t>(i)] = which_[static_cast<std::size_t>(block[i])];
      }
      measure_tile(c, block, rows.data(), count);
    }
  }

  void measure_tile(std::size_t c, const Index* block, const Index* rows, Index count) {
    const Scorer& scorer = *scorers_[c];
    scorer.measure(rows_, rows, count, tile_);
    // Uncertain scores are computed again only where they might be the least.
    std::vector<Index> again;
    std::vector<Index> again_rows;
    for (Index i = 0; i < count; ++i) {
      const Energies& e = tile_.energies[static_cast<std::size_t>(i)];
      bool needed = false;
      for (std::size_t t = 0; t < types_.size(); ++t) {
        const double value = scorer.value(types_[t], e);
        if (scorer.certain(types_[t], e)) {
          keep(t, block[i], c, value);
        } else {
          const double error = scorer.error(types_[t], e);
          needed = needed || !(value - error > least_(static_cast<Index>(t), block[i])) ||
                   (held_out_ != nullptr && may_decide(c, block[i], value - error));
        }
      }
      if (!needed) continue;
      again.push_back(i);
      again_rows.push_back(rows[i]);
    }
    if (again.empty()) return;
    const std::vector<Energies> exact = scorer.measure_exactly(rows_, again_rows);
    for (std::size_t j = 0; j < again.size(); ++j) {
      const Energies& e = tile_.energies[static_cast<std::size_t>(again[j])];
      for (std::size_t t = 0; t < types_.size(); ++t) {
        if (scorer.certain(types_[t], e)) continue;
        keep(t, block[again[j]], c, scorer.value(types_[t], exact[j]));
      }
    }
  }

  void keep(std::size_t type, Index i, std::size_t c, double value) {
    const auto t = static_cast<Index>(type);
    double& least = least_(t, i);
    int& nearest = classes_(t, i);
    const auto candidate = static_cast<int>(c);
    if (value < least || (value == least && candidate < nearest)) {  // never for NaN
      least = value;
      nearest = candidate;
    }
    if (held_out_ == nullptr) return;
    const float score = to_score(value);
    raise(p_values_[i], held_out_->p_value(static_cast<Index>(c), score));
    raise(margins_[i], held_out_->thresholds[static_cast<Index>(c)] - static_cast<double>(score));
  }

  // Whether a score of class c that is no less than `lowest` could raise a row's p-value or margin.
  // The smallest p-value, of any score above all held-out ones, is known without the score.
  bool may_decide(std::size_t c, Index i, double lowest) {
    const auto own = static_cast<Index>(c);
    if (!(held_out_->n_units[own] > 0)) return false;
    const double margin = held_out_->thresholds[own] - lowest;
    if (!std::isnan(margin) && !(margins_[i] >= margin)) return true;
    const float score = to_score(lowest);
    if (score > held_out_->scores[held_out_->starts[own + 1] - 1]) {
      raise(p_values_[i], 1 / (held_out_->n_units[own] + 1));
      return false;
    }
    return !(p_values_[i] >= held_out_->p_value(own, score));
  }

  // The larger of both; the other one where one is NaN.
  static void raise(double& value, double candidate) {
    if (!std::isnan(candidate) && !(value >= candidate)) value = candidate;
  }

  const RowsView& rows_;
  const std::vector<const Scorer*>& scorers_;
  const std::vector<ScoreType>& types_;
  const HeldOutScores* held_out_;  // or nothing
  Scorer::Tile tile_;
  std::vector<Index> which_;           // the rows that are finite: what `i` counts
  Matrix<double> least_;               // (n_types, n)
  Matrix<int> classes_;                // (n_types, n)
  Matrix<float> low_residual_;         // (n_classes, n), or nothing where no type takes it
  Matrix<float> low_mahalanobis_;      // (n_classes, n), likewise
  Vector<double> p_values_, margins_;  // (n,), where there are held-out scores
};

// Blocks of rows through the classes, into a result that can take them.
template <typename Result>
void go_through(const RowsView& rows, const std::vector<const Scorer*>& scorers,
                const Bounds* bounds, const std::vector<ScoreType>& types,
                const HeldOutScores* held_out, int n_threads, Result& result) {
  const Index n = rows.rows();
  const Index step = block_rows(n, static_cast<Index>(scorers.size()), n_threads);
  // Whichever block finds it out first: that changes the time, never the result.
  std::atomic<bool> bounds_pay{bounds != nullptr && scorers.size() > 1};
  parallel_blocks(n, step, n_threads, [&](Index first, Index count) {
    Block block(rows, first, count, scorers, types, held_out);
    if (bounds_pay) {
      if (block.measure_where_near(*bounds) > kMostLeft) bounds_pay = false;
    } else {
      block.measure_all();
    }
    block.write(result);
  });
}

NearestClasses none_yet(Index n_types, Index n) {
  return {Matrix<float>::Constant(n_types, n, std::numeric_limits<float>::quiet_NaN()),
          Matrix<int>::Constant(n_types, n, -1)};
}

}  // namespace

double HeldOutScores::p_value(Index c, float score) const {
  if (!(n_units[c] > 0) || std::isnan(score)) return std::numeric_limits<double>::quiet_NaN();
  const float* const first = scores + starts[c];
  const Index above = std::lower_bound(first, scores + starts[c + 1], score) - first;
  return (1 + weights[starts[c] + c + above]) / (n_units[c] + 1);
}

NearestClasses score_nearest(const RowsView& rows, const std::vector<const Scorer*>& scorers,
                             const Bounds* bounds, const std::vector<ScoreType>& types,
                             int n_threads) {
  NearestClasses result = none_yet(static_cast<Index>(types.size()), rows.rows());
  go_through(rows, scorers, bounds, types, nullptr, n_threads, result);
  return result;
}

JudgedRows judge(const RowsView& rows, const std::vector<const Scorer*>& scorers,
                 const Bounds* bounds, ScoreType type, const HeldOutScores& held_out,
                 int n_threads) {
  const Index n = rows.rows();
  const auto missing = Vector<double>::Constant(n, std::numeric_limits<double>::quiet_NaN());
  JudgedRows result{none_yet(1, n), missing, missing};
  go_through(rows, scorers, bounds, {type}, &held_out, n_threads, result);
  return result;
}

}  // namespace pydfm
