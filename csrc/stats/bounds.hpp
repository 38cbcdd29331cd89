// How far rows are from many classes at the least: lower bounds on what their scores are made of,
// at a fraction of its cost.
#pragma once

#include <vector>

#include "kernels/matrix.hpp"
#include "kernels/projection.hpp"
#include "stats/scoring.hpp"

namespace pydfm {

/// With v = x - mean_c, both parts of a score are squared norms of linear maps of v,
///
///   residual_c    = |(I - W W')v|^2,      mahalanobis_c = |diag(variances)^(-1/2) W'v|^2,
///
/// so that their squared length along a few orthonormal directions is no more than they are. Such a
/// direction of the image is a product p'v with a vector of features p, a probe. The probes of a
/// class are those along which the means of the classes are farthest from its own (the leading left
/// singular vectors of what the map makes of their differences): where a row of another class shows
/// first. All classes' products with a row are one product with the row less one centre, m:
/// p'(x - mean_c) = p'(x - m) - p'(mean_c - m). Classes that share their components and variances
/// share their probes as well, and a row is multiplied with these once: more directions of the
/// residual, and all of them for mahalanobis.
///
/// What float32 may add to a bound, g |x - m| to each product, is taken from it, so that the bounds
/// hold.
class Bounds {
 public:
  enum class Part { kResidual, kMahalanobis };

  /// Of the classes that `scorers` score.
  Bounds(const std::vector<const Scorer*>& scorers, int n_threads);
  Bounds(const Bounds&) = delete;
  Bounds& operator=(const Bounds&) = delete;

  /// Writes to low (n_classes, n) the bounds for the rows `which` (n,) of `rows`; 0 for rows that
  /// are not finite or whose squares are near the ends of float32.
  void find(Part part, const RowsView& rows, const std::vector<Index>& which,
            Matrix<float>& low) const;

 private:
  // Some classes one after the other, and products of x - m with their probes: with the first probe
  // of each class, then the second, ...; or, where all share their probes, with these.
  struct Group {
    Index first_class;
    Projection projection;
    Matrix<double> offsets;     // (n_probes, n_classes)  p'(mean_c - m)
    Matrix<double> precisions;  // (n_probes, n_classes)  of the products; 0 where there is no probe
  };

  Group group_of_own_probes(Part part, const std::vector<const Scorer*>& scorers, Index first_class,
                            const Matrix<double>& spread) const;
  Group group_of_shared_probes(Part part, const std::vector<const Scorer*>& scorers,
                               const Matrix<double>& spread) const;

  const std::vector<Group>& groups(Part part) const {
    return part == Part::kResidual ? residual_ : mahalanobis_;
  }

  Vector<double> centre_;  // m: the mean of the classes' means
  bool shared_ = false;    // classes differ in their means alone
  std::vector<Group> residual_;
  std::vector<Group> mahalanobis_;
};

}  // namespace pydfm
