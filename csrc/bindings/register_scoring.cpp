#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/calls.hpp"
#include "bindings/register.hpp"

namespace pydfm::bindings {

namespace {

// A scorer, and the arrays that it goes on reading.
struct Scorer {
  Scorer(Numbers mean, Numbers components, Numbers variances, double noise_variance)
      : kept{std::move(mean), std::move(components), std::move(variances)} {
    const core::Matrix w = matrix(kept[1], "components");
    check(w.cols > 0, "components have no features; they need at least one");
    const core::Vector l = vector(kept[2], "variances", w.rows);
    check_positive(l, "variances");
    scorer = core::make_scorer(vector(kept[0], "mean", w.cols), w, l, noise_variance);
  }

  Index features() const { return core::n_features(*scorer); }

  Numbers kept[3];
  std::shared_ptr<const pydfm::Scorer> scorer;
};

// Scorers as the core takes them; the sequence keeps them alive.
core::Scorers scorers_of(const py::tuple& sequence) {
  core::Scorers scorers;
  for (const py::handle item : sequence) {
    if (!py::isinstance<Scorer>(item)) throw py::type_error("scorers may have Scorer objects only");
    scorers.push_back(py::cast<const Scorer&>(item).scorer.get());
  }
  return scorers;
}

// Classes that rows are scored under together, and what is made ready of them once.
struct Classes {
  Classes(const py::sequence& sequence, int n_threads) : kept(sequence), scorers(scorers_of(kept)) {
    check(!scorers.empty(), "scorers is empty; at least one class is needed");
    for (const pydfm::Scorer* scorer : scorers) {
      check(core::n_features(*scorer) == core::n_features(*scorers.front()),
            "scorers must all have the same number of features");
    }
    bounds = without_gil([&] { return core::make_bounds(scorers, n_threads); });
  }

  py::tuple kept;
  core::Scorers scorers;
  std::shared_ptr<const Bounds> bounds;
};

// Held-out scores of classes, and the arrays that it goes on reading.
struct HeldOutScores {
  HeldOutScores(NumpyArray<float> scores, Numbers weights, NumpyArray<std::int64_t> starts,
                Numbers n_units, Numbers thresholds)
      : scores(std::move(scores)),
        weights(std::move(weights)),
        starts(std::move(starts)),
        n_units(std::move(n_units)),
        thresholds(std::move(thresholds)) {
    const core::Vector units = vector(this->n_units, "n_units", -1);
    check(this->scores.ndim() == 1 && this->starts.ndim() == 1 &&
              this->starts.shape(0) == units.size + 1,
          "scores must be one-dimensional, and starts have one more element than n_units");
    check_aligned(this->scores, "scores", alignof(float));
    check_aligned(this->starts, "starts", alignof(std::int64_t));
    const std::int64_t* const start = this->starts.data();
    check(start[0] == 0 && start[units.size] == this->scores.shape(0) &&
              std::is_sorted(start, start + units.size + 1),
          "starts must ascend from 0 to the number of scores");
    view = {this->scores.data(),
            vector(this->weights, "weights", this->scores.shape(0) + units.size).data, start, units,
            vector(this->thresholds, "thresholds", units.size)};
  }

  NumpyArray<float> scores;
  Numbers weights;
  NumpyArray<std::int64_t> starts;
  Numbers n_units, thresholds;
  core::HeldOutScores view;
};

py::tuple nearest(const RowsView& x, const core::Scorers& scorers, const Bounds* bounds,
                  const core::ScoreTypes& score_types, int n_threads) {
  for (const pydfm::Scorer* scorer : scorers) {
    check(x.cols() == core::n_features(*scorer),
          "rows must have as many columns as the components of every scorer");
  }
  const core::Nearest found =
      without_gil([&] { return core::score_nearest(x, scorers, bounds, score_types, n_threads); });
  return py::make_tuple(to_matrix(found.scores), to_matrix(found.classes));
}

template <typename Scalar>
void bind_scores(py::module_& m) {
  using namespace py::literals;
  m.def(
      "score",
      [](const NumpyArray<Scalar>& rows, const Scorer& scorer, const core::ScoreTypes& score_types,
         int n_threads) {
        const RowsView x = rows_view(rows);
        check(x.cols() == scorer.features(), "rows must have as many columns as the components");
        return to_matrix(
            without_gil([&] { return core::score(x, *scorer.scorer, score_types, n_threads); }));
      },
      "rows"_a.noconvert(), "scorer"_a, py::kw_only(), "score_types"_a, "n_threads"_a);
  m.def(
      "score_nearest",
      [](const NumpyArray<Scalar>& rows, const Classes& classes,
         const core::ScoreTypes& score_types, int n_threads) {
        return nearest(rows_view(rows), classes.scorers, classes.bounds.get(), score_types,
                       n_threads);
      },
      "rows"_a.noconvert(), "scorers"_a, py::kw_only(), "score_types"_a, "n_threads"_a);
  m.def(
      "judge",
      [](const NumpyArray<Scalar>& rows, const Classes& classes, const HeldOutScores& held_out,
         const std::string& score_type, int n_threads) {
        const RowsView x = rows_view(rows);
        check(x.cols() == core::n_features(*classes.scorers.front()),
              "rows must have as many columns as the components of every scorer");
        check(held_out.view.n_units.size == static_cast<Index>(classes.scorers.size()),
              "held_out must have as many classes as scorers");
        const core::Judged judged = without_gil([&] {
          return core::judge(x, classes.scorers, classes.bounds.get(), score_type, held_out.view,
                             n_threads);
        });
        return py::make_tuple(to_matrix(judged.nearest.scores), to_matrix(judged.nearest.classes),
                              to_vector(judged.p_values), to_vector(judged.margins));
      },
      "rows"_a.noconvert(), "classes"_a, "held_out"_a, py::kw_only(), "score_type"_a,
      "n_threads"_a);
  m.def(
      "score_nearest",
      [](const NumpyArray<Scalar>& rows, const py::sequence& scorers,
         const core::ScoreTypes& score_types, int n_threads) {
        const py::tuple kept(scorers);
        return nearest(rows_view(rows), scorers_of(kept), nullptr, score_types, n_threads);
      },
      "rows"_a.noconvert(), "scorers"_a, py::kw_only(), "score_types"_a, "n_threads"_a);
}

}  // namespace

void register_scoring(py::module_& m) {
  using namespace py::literals;
  // Local: the builds for other instruction sets have a class of that name too.
  py::class_<Scorer>(m, "Scorer", "A class made ready to score rows.", py::module_local())
      .def(py::init<Numbers, Numbers, Numbers, double>(), "mean"_a.noconvert(),
           "components"_a.noconvert(), "variances"_a.noconvert(), py::kw_only(),
           "noise_variance"_a);
  py::class_<Classes>(m, "Classes", "Classes made ready to score rows under the nearest of them.",
                      py::module_local())
      .def(py::init<const py::sequence&, int>(), "scorers"_a, py::kw_only(), "n_threads"_a);
  py::class_<HeldOutScores>(m, "HeldOutScores", "Held-out scores that rows are judged by.",
                            py::module_local())
      .def(py::init<NumpyArray<float>, Numbers, NumpyArray<std::int64_t>, Numbers, Numbers>(),
           "scores"_a.noconvert(), "weights"_a.noconvert(), "starts"_a.noconvert(),
           "n_units"_a.noconvert(), "thresholds"_a.noconvert());
  bind_scores<float>(m);
  bind_scores<double>(m);
}

}  // namespace pydfm::bindings
