#include <cstdint>
#include <optional>

#include "bindings/arrays.hpp"
#include "bindings/calls.hpp"
#include "bindings/register.hpp"

namespace pydfm::bindings {

namespace {

core::TrainingRows training_rows(const Numbers& coordinates, const Numbers& eigenvalues,
                                 const Numbers& rho, double resolution) {
  const core::Matrix z = matrix(coordinates, "coordinates");
  return {z, vector(eigenvalues, "eigenvalues", z.cols), vector(rho, "rho", z.rows), resolution};
}

using Integers = NumpyArray<std::int64_t>;

core::Integers integers(const Integers& array, const char* name, Index size) {
  check(array.ndim() == 1 && array.shape(0) == size,
        std::string(name) + " must be one-dimensional with length " + std::to_string(size));
  check_aligned(array, name, alignof(std::int64_t));
  return {array.data(), array.shape(0)};
}

// Of as many groups as there are `class_sizes`.
core::TrainingGroups training_groups(const Numbers& coordinates, const Numbers& eigenvalues,
                                     const Integers& starts, const Numbers& class_sizes,
                                     const Numbers& degrees_of_freedom, double resolution) {
  const core::Matrix z = matrix(coordinates, "coordinates");
  const core::Vector sizes = vector(class_sizes, "class_sizes", -1);
  return {{z, integers(starts, "starts", sizes.size + 1)},
          vector(eigenvalues, "eigenvalues", z.cols),
          sizes,
          vector(degrees_of_freedom, "degrees_of_freedom", sizes.size),
          resolution};
}

std::optional<core::RowGroups> scored_groups(const std::optional<Numbers>& scored,
                                             const std::optional<Integers>& starts,
                                             const core::TrainingGroups& training) {
  check(scored.has_value() == starts.has_value(),
        "scored and scored_starts must be given together");
  if (!scored) return std::nullopt;
  const core::Matrix rows = matrix(*scored, "scored");
  check(rows.cols == training.eigenvalues.size,
        "scored has " + std::to_string(rows.cols) +
            " columns; it must have those of coordinates, " +
            std::to_string(training.eigenvalues.size));
  return core::RowGroups{rows, integers(*starts, "scored_starts", training.class_sizes.size + 1)};
}

}  // namespace

void register_held_out(py::module_& m) {
  using namespace py::literals;
  m.def(
      "leave_one_out",
      [](const Numbers& coordinates, const Numbers& eigenvalues, const Numbers& rho,
         Index n_components, double degrees_of_freedom, Index n_variances, Index n_features,
         double resolution, const core::ScoreTypes& score_types, int n_threads) {
        const core::TrainingRows rows = training_rows(coordinates, eigenvalues, rho, resolution);
        const core::RemainingModel model{n_components, degrees_of_freedom, n_variances, n_features};
        return to_matrix(
            without_gil([&] { return core::leave_one_out(rows, model, score_types, n_threads); }));
      },
      "coordinates"_a.noconvert(), "eigenvalues"_a.noconvert(), "rho"_a.noconvert(), py::kw_only(),
      "n_components"_a, "degrees_of_freedom"_a, "n_variances"_a, "n_features"_a, "resolution"_a,
      "score_types"_a, "n_threads"_a);
  m.def(
      "leave_one_out_residuals",
      [](const Numbers& coordinates, const Numbers& eigenvalues, const Numbers& rho,
         Index n_components, double resolution, int n_threads) {
        const core::TrainingRows rows = training_rows(coordinates, eigenvalues, rho, resolution);
        return to_matrix(without_gil(
            [&] { return core::leave_one_out_residuals(rows, n_components, n_threads); }));
      },
      "coordinates"_a.noconvert(), "eigenvalues"_a.noconvert(), "rho"_a.noconvert(), py::kw_only(),
      "n_components"_a, "resolution"_a, "n_threads"_a);
  m.def(
      "leave_groups_out",
      [](const Numbers& coordinates, const Numbers& eigenvalues, const Integers& starts,
         const Numbers& class_sizes, Index n_components, const Numbers& degrees_of_freedom,
         const Integers& n_variances, Index n_features, double resolution, bool shrinkage,
         double floor, const std::optional<Numbers>& scored,
         const std::optional<Integers>& scored_starts, const core::ScoreTypes& score_types,
         int n_threads) {
        const core::TrainingGroups training = training_groups(
            coordinates, eigenvalues, starts, class_sizes, degrees_of_freedom, resolution);
        const core::GroupModels models{
            n_components, integers(n_variances, "n_variances", training.class_sizes.size),
            n_features, shrinkage, floor};
        const auto others = scored_groups(scored, scored_starts, training);
        return to_matrix(without_gil([&] {
          return core::leave_groups_out(training, others, models, score_types, n_threads);
        }));
      },
      "coordinates"_a.noconvert(), "eigenvalues"_a.noconvert(), "starts"_a.noconvert(),
      "class_sizes"_a.noconvert(), py::kw_only(), "n_components"_a,
      "degrees_of_freedom"_a.noconvert(), "n_variances"_a.noconvert(), "n_features"_a,
      "resolution"_a, "shrinkage"_a = false, "floor"_a = 0.0, "scored"_a.noconvert() = py::none(),
      "scored_starts"_a.noconvert() = py::none(), "score_types"_a, "n_threads"_a);
  m.def(
      "leave_groups_out_residuals",
      [](const Numbers& coordinates, const Numbers& eigenvalues, const Integers& starts,
         const Numbers& class_sizes, Index n_components, const Numbers& degrees_of_freedom,
         double resolution, const std::optional<Numbers>& scored,
         const std::optional<Integers>& scored_starts, int n_threads) {
        const core::TrainingGroups training = training_groups(
            coordinates, eigenvalues, starts, class_sizes, degrees_of_freedom, resolution);
        const auto others = scored_groups(scored, scored_starts, training);
        return to_matrix(without_gil([&] {
          return core::leave_groups_out_residuals(training, others, n_components, n_threads);
        }));
      },
      "coordinates"_a.noconvert(), "eigenvalues"_a.noconvert(), "starts"_a.noconvert(),
      "class_sizes"_a.noconvert(), py::kw_only(), "n_components"_a,
      "degrees_of_freedom"_a.noconvert(), "resolution"_a, "scored"_a.noconvert() = py::none(),
      "scored_starts"_a.noconvert() = py::none(), "n_threads"_a);
  m.def(
      "leave_groups_out_rests",
      [](const Numbers& coordinates, const Numbers& eigenvalues, const Integers& starts,
         const Numbers& class_sizes, Index n_components, const Numbers& degrees_of_freedom,
         double resolution, int n_threads) {
        const core::TrainingGroups training = training_groups(
            coordinates, eigenvalues, starts, class_sizes, degrees_of_freedom, resolution);
        return to_vector(without_gil(
            [&] { return core::leave_groups_out_rests(training, n_components, n_threads); }));
      },
      "coordinates"_a.noconvert(), "eigenvalues"_a.noconvert(), "starts"_a.noconvert(),
      "class_sizes"_a.noconvert(), py::kw_only(), "n_components"_a,
      "degrees_of_freedom"_a.noconvert(), "resolution"_a, "n_threads"_a);
}

}  // namespace pydfm::bindings
