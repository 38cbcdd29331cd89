// The only file that knows Python: checks arrays, releases the GIL, maps errors, minds signals.
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <pybind11/eigen.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pydfm/eigensolver.hpp"
#include "pydfm/interruption.hpp"
#include "pydfm/leave_one_out.hpp"
#include "pydfm/moments.hpp"
#include "pydfm/nearest.hpp"
#include "pydfm/scoring.hpp"
#include "pydfm/subspace.hpp"

namespace py = pybind11;
using pydfm::Index;

namespace {

template <typename Scalar>
using Array = py::array_t<Scalar, py::array::c_style>;

template <typename Scalar>
pydfm::MatrixView<Scalar> matrix(const Array<Scalar>& array, const char* name) {
  if (array.ndim() != 2) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.ndim()) +
                                " dimensions; it must have 2");
  }
  return {array.data(), array.shape(0), array.shape(1)};
}

template <typename Scalar>
pydfm::VectorView<Scalar> vector(const Array<Scalar>& array, const char* name, Index size) {
  if (array.ndim() != 1 || (size >= 0 && array.shape(0) != size)) {
    throw std::invalid_argument(std::string(name) + " must be one-dimensional" +
                                (size >= 0 ? " with length " + std::to_string(size) : ""));
  }
  return {array.data(), array.shape(0)};
}

void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// As Python numbers it.
std::atomic<unsigned long> main_thread{0};

void find_main_thread() {
  const py::object thread = py::module_::import("threading").attr("main_thread")();
  main_thread = py::cast<unsigned long>(thread.attr("ident"));
}

// Lets Python call its handlers of signals that came, of which that of Ctrl-C raises
// KeyboardInterrupt. They run on the main thread only; and at the end of a program, another that
// asked for the GIL would not get it.
void call_signal_handlers() {
  if (PyThread_get_thread_ident() != main_thread) return;
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

template <typename Function>
auto without_gil(const Function& function) {
  const py::gil_scoped_release release;
  const pydfm::Interruptible interruptible(&call_signal_handlers);
  return function();
}

pydfm::ScoreType score_type(const std::string& name) {
  if (name == "fre") return pydfm::ScoreType::kFre;
  if (name == "mahalanobis") return pydfm::ScoreType::kMahalanobis;
  if (name == "nll") return pydfm::ScoreType::kNll;
  if (name == "ppca") return pydfm::ScoreType::kPpca;
  throw std::invalid_argument("score_types has '" + name +
                              "'; it may have 'fre', 'mahalanobis', 'nll' and 'ppca'");
}

std::vector<pydfm::ScoreType> as_score_types(const std::vector<std::string>& names) {
  std::vector<pydfm::ScoreType> types;
  for (const std::string& name : names) types.push_back(score_type(name));
  return types;
}

// Made from arrays that the scorer goes on reading: the binding keeps them alive.
std::unique_ptr<pydfm::Scorer> make_scorer(const Array<double>& mean,
                                           const Array<double>& components,
                                           const Array<double>& variances, double noise_variance) {
  const auto w = matrix(components, "components");
  const pydfm::SubspaceView subspace{vector(mean, "mean", w.cols()), w,
                                     vector(variances, "variances", w.rows()), noise_variance};
  check((subspace.variances.array() > 0).all(), "variances must be positive");
  return std::make_unique<pydfm::Scorer>(subspace);
}

// Classes that rows are scored under together, and what is made ready of them once.
struct Classes {
  using Scorers = std::vector<const pydfm::Scorer*>;

  Classes(const py::sequence& sequence, int n_threads)
      : kept(sequence), scorers(py::cast<Scorers>(kept)) {
    check(!scorers.empty(), "scorers is empty; at least one class is needed");
    for (const pydfm::Scorer* scorer : scorers) {
      check(scorer != nullptr && scorer->features() == scorers.front()->features(),
            "scorers must all have the same number of features");
    }
    without_gil([&] { bounds.emplace(scorers, n_threads); });
  }

  py::tuple kept;  // keeps the scorers alive
  Scorers scorers;
  std::optional<pydfm::Bounds> bounds;
};

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names{"baseline"};
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3) names.emplace_back("v3");
  if (v4) names.emplace_back("v4");
#endif
  return names;
}

py::tuple as_tuple(pydfm::Moments&& m) {
  return py::make_tuple(m.count, std::move(m.mean), std::move(m.scatter));
}

using MomentsTuple = std::tuple<Index, Array<double>, Array<double>>;

pydfm::MomentsView as_moments(const MomentsTuple& m) {
  const auto& [count, mean, scatter] = m;
  const auto s = matrix(scatter, "scatter");
  check(s.rows() == s.cols(), "scatter must be square");
  return {count, vector(mean, "mean", s.rows()), s};
}

using MomentsPair = pydfm::Moments (*)(const pydfm::MomentsView&, const pydfm::MomentsView&);

void bind_moments_pair(py::module_& m, const char* name, MomentsPair function,
                       const std::string& done) {
  using namespace py::literals;
  m.def(
      name,
      [function, done](const MomentsTuple& a, const MomentsTuple& b) {
        const pydfm::MomentsView left = as_moments(a);
        const pydfm::MomentsView right = as_moments(b);
        check(left.mean.size() == right.mean.size(),
              "moments of different numbers of features cannot be " + done);
        return as_tuple(without_gil([&] { return function(left, right); }));
      },
      "a"_a, "b"_a);
}

pydfm::TrainingRows training_rows(const Array<double>& coordinates,
                                  const Array<double>& eigenvalues, const Array<double>& rho,
                                  double resolution) {
  const auto z = matrix(coordinates, "coordinates");
  return {z, vector(eigenvalues, "eigenvalues", z.cols()), vector(rho, "rho", z.rows()),
          resolution};
}

void bind_leave_one_out(py::module_& m) {
  using namespace py::literals;

  m.def(
      "leave_one_out",
      [](const Array<double>& coordinates, const Array<double>& eigenvalues,
         const Array<double>& rho, Index n_components, double degrees_of_freedom, Index n_variances,
         Index n_features, double resolution, const std::vector<std::string>& score_types,
         int n_threads) {
        const auto rows = training_rows(coordinates, eigenvalues, rho, resolution);
        const auto types = as_score_types(score_types);
        const pydfm::RemainingModel model{n_components, degrees_of_freedom, n_variances,
                                          n_features};
        return without_gil([&] { return pydfm::leave_one_out(rows, model, types, n_threads); });
      },
      py::arg("coordinates").noconvert(), py::arg("eigenvalues").noconvert(),
      py::arg("rho").noconvert(), py::kw_only(), "n_components"_a, "degrees_of_freedom"_a,
      "n_variances"_a, "n_features"_a, "resolution"_a, "score_types"_a, "n_threads"_a);

  // What k components leave of the rows, as shares and as vectors.
  m.def(
      "leave_one_out_residuals",
      [](const Array<double>& coordinates, const Array<double>& eigenvalues,
         const Array<double>& rho, Index n_components, double resolution, int n_threads) {
        const auto rows = training_rows(coordinates, eigenvalues, rho, resolution);
        return without_gil(
            [&] { return pydfm::leave_one_out_residuals(rows, n_components, n_threads); });
      },
      py::arg("coordinates").noconvert(), py::arg("eigenvalues").noconvert(),
      py::arg("rho").noconvert(), py::kw_only(), "n_components"_a, "resolution"_a, "n_threads"_a);
}

template <typename Scalar>
void bind_rows(py::module_& m) {
  using namespace py::literals;

  m.def(
      "moments",
      [](const Array<Scalar>& rows, int n_threads) {
        const auto x = matrix(rows, "rows");
        return as_tuple(without_gil([&] { return pydfm::moments(x, n_threads); }));
      },
      py::arg("rows").noconvert(), py::kw_only(), "n_threads"_a);

  m.def(
      "gram",
      [](const Array<Scalar>& rows, int n_threads) {
        const auto x = matrix(rows, "rows");
        pydfm::Gram g = without_gil([&] { return pydfm::gram(x, n_threads); });
        return py::make_tuple(std::move(g.mean), std::move(g.gram));
      },
      py::arg("rows").noconvert(), py::kw_only(), "n_threads"_a);

  m.def(
      "components_from_gram",
      [](const Array<Scalar>& rows, const Array<double>& mean, const Array<double>& values,
         const Array<double>& vectors, int n_threads) {
        const auto x = matrix(rows, "rows");
        const auto u = matrix(vectors, "vectors");
        const auto mu = vector(mean, "mean", x.cols());
        const auto l = vector(values, "values", u.rows());
        check(u.cols() == x.rows(), "vectors must have one column per row of rows");
        check((l.array() > 0).all(), "values must be positive");
        return without_gil([&] { return pydfm::components_from_gram(x, mu, l, u, n_threads); });
      },
      py::arg("rows").noconvert(), py::arg("mean").noconvert(), py::arg("values").noconvert(),
      py::arg("vectors").noconvert(), py::kw_only(), "n_threads"_a);

  m.def(
      "coordinates",
      [](const Array<Scalar>& rows, const Array<double>& mean, const Array<double>& components,
         int n_threads) {
        const auto x = matrix(rows, "rows");
        const auto w = matrix(components, "components");
        const auto mu = vector(mean, "mean", x.cols());
        check(w.cols() == x.cols(), "components must have as many columns as rows");
        return without_gil([&] { return pydfm::coordinates(x, mu, w, n_threads); });
      },
      py::arg("rows").noconvert(), py::arg("mean").noconvert(), py::arg("components").noconvert(),
      py::kw_only(), "n_threads"_a);

  m.def(
      "score",
      [](const Array<Scalar>& rows, const pydfm::Scorer& scorer,
         const std::vector<std::string>& score_types, int n_threads) {
        const auto x = matrix(rows, "rows");
        check(x.cols() == scorer.features(), "rows must have as many columns as the components");
        const std::vector<pydfm::ScoreType> types = as_score_types(score_types);
        return without_gil([&] { return pydfm::score(x, scorer, types, n_threads); });
      },
      py::arg("rows").noconvert(), "scorer"_a, py::kw_only(), "score_types"_a, "n_threads"_a);

  const auto score_nearest = [](const Array<Scalar>& rows, const Classes::Scorers& scorers,
                                const pydfm::Bounds* bounds,
                                const std::vector<std::string>& score_types, int n_threads) {
    const auto x = matrix(rows, "rows");
    for (const pydfm::Scorer* scorer : scorers) {
      check(scorer != nullptr && x.cols() == scorer->features(),
            "rows must have as many columns as the components of every scorer");
    }
    const std::vector<pydfm::ScoreType> types = as_score_types(score_types);
    pydfm::NearestClasses nearest =
        without_gil([&] { return pydfm::score_nearest(x, scorers, bounds, types, n_threads); });
    return py::make_tuple(std::move(nearest.scores), std::move(nearest.classes));
  };
  m.def(
      "score_nearest",
      [score_nearest](const Array<Scalar>& rows, const Classes& classes,
                      const std::vector<std::string>& score_types, int n_threads) {
        return score_nearest(rows, classes.scorers, &*classes.bounds, score_types, n_threads);
      },
      py::arg("rows").noconvert(), "scorers"_a, py::kw_only(), "score_types"_a, "n_threads"_a);
  m.def(
      "score_nearest",
      [score_nearest](const Array<Scalar>& rows, const Classes::Scorers& scorers,
                      const std::vector<std::string>& score_types, int n_threads) {
        return score_nearest(rows, scorers, nullptr, score_types, n_threads);
      },
      py::arg("rows").noconvert(), "scorers"_a, py::kw_only(), "score_types"_a, "n_threads"_a);
}

}  // namespace

PYBIND11_MODULE(PYDFM_MODULE, m, py::mod_gil_not_used()) {
  using namespace py::literals;
  m.doc() = "The compiled core of pydfm, built for one instruction set.";
  m.attr("instruction_set") = PYDFM_INSTRUCTION_SET;
  m.attr("eigen_version") = std::to_string(EIGEN_WORLD_VERSION) + "." +
                            std::to_string(EIGEN_MAJOR_VERSION) + "." +
                            std::to_string(EIGEN_MINOR_VERSION);
  m.attr("compiler") = PYDFM_COMPILER;
  m.def("supported_instruction_sets", &supported_instruction_sets);

  find_main_thread();
  const py::module_ os = py::module_::import("os");
  if (py::hasattr(os, "register_at_fork")) {
    // A child's main thread is the one that forked.
    os.attr("register_at_fork")("after_in_child"_a = py::cpp_function(&find_main_thread));
  }

  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const pydfm::EigensolverError& e) {
      py::set_error(py::module_::import("numpy.linalg").attr("LinAlgError"), e.what());
    }
  });

  // Local: the builds for other instruction sets have a class of that name too.
  py::class_<pydfm::Scorer>(m, "Scorer", "A class made ready to score rows.", py::module_local())
      .def(py::init(&make_scorer), py::arg("mean").noconvert(), py::arg("components").noconvert(),
           py::arg("variances").noconvert(), py::kw_only(), "noise_variance"_a,
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>());

  py::class_<Classes>(m, "Classes", "Classes made ready to score rows under the nearest of them.",
                      py::module_local())
      .def(py::init<const py::sequence&, int>(), "scorers"_a, py::kw_only(), "n_threads"_a);

  bind_rows<float>(m);
  bind_rows<double>(m);
  bind_leave_one_out(m);
  bind_moments_pair(m, "subtract_moments", &pydfm::subtract, "subtracted");
  bind_moments_pair(m, "merge_moments", &pydfm::merge, "merged");
  m.def(
      "eigh",
      [](const Array<double>& a, Index count, double share, int n_threads) {
        const auto symmetric = matrix(a, "a");
        check(symmetric.rows() == symmetric.cols(), "a must be square");
        pydfm::Eigenpairs pairs =
            without_gil([&] { return pydfm::eigh(symmetric, {count, share}, n_threads); });
        return py::make_tuple(std::move(pairs.values), std::move(pairs.vectors));
      },
      py::arg("a").noconvert(), py::kw_only(), "count"_a = pydfm::Wanted{}.count,
      "share"_a = pydfm::Wanted{}.share, "n_threads"_a);
}
