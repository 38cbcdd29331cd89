// How far rows are from a class: every score in one pass.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/matrix.hpp"
#include "kernels/projection.hpp"

namespace pydfm {

/// One class: a Gaussian in its principal subspace, and isotropic noise around the subspace.
struct SubspaceView {
  VectorView<double> mean;        // (d,)
  MatrixView<double> components;  // (k, d)  orthonormal rows W'
  VectorView<double> variances;   // (k,)    along the components, all > 0
  double noise_variance;          //         per feature outside the subspace; read for ppca only
};

/// ln 2 pi, of the normal distribution's density.
constexpr double kLog2Pi = 1.8378770664093454836;

enum class ScoreType { kFre, kMahalanobis, kNll, kPpca };

/// The score of that name: fre, mahalanobis, nll or ppca.
ScoreType score_type(const std::string& name);

/// What the scores of a row are made of, with v = x - mean and z = W'v.
struct Energies {
  double total = 0;        // |v|^2
  double residual = 0;     // |v|^2 - |z|^2
  double mahalanobis = 0;  // sum z_i^2 / variance_i
};

/// A class made ready: what every call would have to compute again of the subspace. Reads the
/// memory that `subspace` views, which must outlive it.
class Scorer {
 public:
  explicit Scorer(const SubspaceView& subspace);

  const SubspaceView& subspace() const { return subspace_; }
  Index features() const { return subspace_.mean.size(); }

  /// The score of a row with these energies; `Number` may be an array of rows.
  template <typename Number>
  Number value(ScoreType type, const Number& residual, const Number& mahalanobis) const;
  double value(ScoreType type, const Energies& energies) const {
    return value(type, energies.residual, energies.mahalanobis);
  }

  /// A bound on the error that float32 products may have made in `value`.
  double error(ScoreType type, const Energies& energies) const;

  /// Whether float32 products keep what is promised of the score. False for NaN and infinity too.
  bool certain(ScoreType type, const Energies& energies) const;

  /// What a thread keeps from one tile, and one class, to the next.
  struct Tile : Projection::Tile {
    explicit Tile(Index n_rows)
        : Projection::Tile(n_rows), energies(static_cast<std::size_t>(totals.size())) {}

    std::vector<Energies> energies;
  };

  /// Energies of the rows `which` of `rows`, count <= kTileRows, with products in float32.
  void measure(const RowsView& rows, const Index* which, Index count, Tile& tile) const;

  /// Energies of some rows in float64, tiny residuals from their vectors.
  std::vector<Energies> measure_exactly(const RowsView& rows,
                                        const std::vector<Index>& which) const;

 private:
  SubspaceView subspace_;
  Projection projection_;
  Vector<double> precisions_;  // (projection_.width(),)  1 / variance, and zeros
  double precision_sum_;
  double product_error_;
  double noise_precision_ = 0;
  double nll_constant_;
  double noise_constant_ = 0;
};

/// Scores (n_types, n) of `rows` (n, d), larger = farther. With v = x - mean and z = W'v:
///
///   fre          = |v|^2 - |z|^2
///   mahalanobis  = sum_i z_i^2 / variance_i
///   nll          = 1/2 (mahalanobis + sum_i ln variance_i + k ln 2 pi)
///   ppca         = nll + 1/2 (fre / noise + (d - k) ln noise + (d - k) ln 2 pi)
///
/// Products are float32; a score that would lose digits that way (see `Scorer::error`) is
/// computed again in float64 from the row's explicit residual, so that every score is within 1e-4
/// relative of float64's. A row with NaN or infinity scores NaN; a score beyond float32 is its
/// largest finite number. A row's score depends neither on the other rows nor on `n_threads`, nor
/// on the other types. Extra memory: a tile of rows per thread.
Matrix<float> score(const RowsView& rows, const Scorer& scorer, const std::vector<ScoreType>& types,
                    int n_threads);

/// A score as it is given out: one beyond float32 is its largest finite number.
float to_score(double value);

template <typename Number>
Number Scorer::value(ScoreType type, const Number& residual, const Number& mahalanobis) const {
  switch (type) {
    case ScoreType::kFre:
      return residual;
    case ScoreType::kMahalanobis:
      return mahalanobis;
    case ScoreType::kNll:
      return 0.5 * mahalanobis + nll_constant_;
    case ScoreType::kPpca:
      return 0.5 * (mahalanobis + residual * noise_precision_) + nll_constant_ + noise_constant_;
  }
  throw std::invalid_argument("unknown score type");
}

}  // namespace pydfm
