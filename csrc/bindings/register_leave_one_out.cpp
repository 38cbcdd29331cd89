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

}  // namespace

void register_leave_one_out(py::module_& m) {
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
}

}  // namespace pydfm::bindings
