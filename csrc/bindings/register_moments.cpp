#include <string>

#include "bindings/arrays.hpp"
#include "bindings/calls.hpp"
#include "bindings/register.hpp"

namespace pydfm::bindings {

namespace {

py::tuple to_tuple(const core::Moments& m) {
  return py::make_tuple(m.count, to_vector(m.mean), to_matrix(m.scatter));
}

// A tuple (count, mean, scatter), whose arrays it keeps.
struct Moments {
  explicit Moments(const py::tuple& tuple)
      : mean(at(tuple, 1)), scatter(at(tuple, 2)), view{count_of(tuple[0]), {}, {}} {
    view.scatter = matrix(scatter, "scatter");
    check(view.scatter.rows == view.scatter.cols, "scatter must be square");
    view.mean = vector(mean, "mean", view.scatter.rows);
    check(view.count >= 0, "count must not be negative");
  }

  static Index count_of(const py::handle& count) {
    if (!PyIndex_Check(count.ptr())) throw py::type_error("a count of rows must be an integer");
    return py::cast<Index>(count);
  }

  static Numbers at(const py::tuple& tuple, std::size_t i) {
    if (tuple.size() != 3 || !Numbers::check_(tuple[i])) {
      throw py::type_error("moments are a tuple of a count, a mean and a scatter, in float64");
    }
    return py::reinterpret_borrow<Numbers>(tuple[i]);
  }

  Numbers mean, scatter;
  core::MomentsView view;
};

using MomentsPair = core::Moments (*)(const core::MomentsView&, const core::MomentsView&);

void bind_pair(py::module_& m, const char* name, MomentsPair function, const std::string& done) {
  using namespace py::literals;
  m.def(
      name,
      [function, done](const py::tuple& a, const py::tuple& b) {
        const Moments left(a), right(b);
        check(left.view.mean.size == right.view.mean.size,
              "moments of different numbers of features cannot be " + done);
        return to_tuple(without_gil([&] { return function(left.view, right.view); }));
      },
      "a"_a, "b"_a);
}

template <typename Scalar>
void bind_moments(py::module_& m) {
  using namespace py::literals;
  m.def(
      "moments",
      [](const NumpyArray<Scalar>& rows, int n_threads) {
        const RowsView x = rows_view(rows);
        return to_tuple(without_gil([&] { return core::moments(x, n_threads); }));
      },
      "rows"_a.noconvert(), py::kw_only(), "n_threads"_a);
  m.def(
      "gram",
      [](const NumpyArray<Scalar>& rows, int n_threads) {
        const RowsView x = rows_view(rows);
        const core::Gram g = without_gil([&] { return core::gram(x, n_threads); });
        return py::make_tuple(to_vector(g.mean), to_matrix(g.gram));
      },
      "rows"_a.noconvert(), py::kw_only(), "n_threads"_a);
  m.def(
      "components_from_gram",
      [](const NumpyArray<Scalar>& rows, const Numbers& mean, const Numbers& values,
         const Numbers& vectors, int n_threads) {
        const RowsView x = rows_view(rows);
        const core::Matrix u = matrix(vectors, "vectors");
        const core::Vector mu = vector(mean, "mean", x.cols());
        const core::Vector l = vector(values, "values", u.rows);
        check(u.cols == x.rows(), "vectors must have one column per row of rows");
        check_positive(l, "values");
        return to_matrix(
            without_gil([&] { return core::components_from_gram(x, mu, l, u, n_threads); }));
      },
      "rows"_a.noconvert(), "mean"_a.noconvert(), "values"_a.noconvert(), "vectors"_a.noconvert(),
      py::kw_only(), "n_threads"_a);
  const auto define_of_subspace = [&m](const char* name, auto* compute) {
    m.def(
        name,
        [compute](const NumpyArray<Scalar>& rows, const Numbers& mean, const Numbers& components,
                  int n_threads) {
          const RowsView x = rows_view(rows);
          const core::Matrix w = matrix(components, "components");
          const core::Vector mu = vector(mean, "mean", x.cols());
          check(w.cols == x.cols(), "components must have as many columns as rows");
          return to_matrix(without_gil([&] { return compute(x, mu, w, n_threads); }));
        },
        "rows"_a.noconvert(), "mean"_a.noconvert(), "components"_a.noconvert(), py::kw_only(),
        "n_threads"_a);
  };
  define_of_subspace("coordinates", &core::coordinates);
  define_of_subspace("residuals", &core::residuals);
}

}  // namespace

void register_moments(py::module_& m) {
  using namespace py::literals;
  bind_moments<float>(m);
  bind_moments<double>(m);
  m.def(
      "product",
      [](const Numbers& a, const Numbers& b, bool transposed, int n_threads) {
        const core::Matrix left = matrix(a, "a"), right = matrix(b, "b");
        check(left.cols == (transposed ? right.cols : right.rows),
              "a must have as many columns as " +
                  std::string(transposed ? "b, which is transposed" : "b has rows"));
        return to_matrix(
            without_gil([&] { return core::product(left, right, transposed, n_threads); }));
      },
      "a"_a.noconvert(), "b"_a.noconvert(), py::kw_only(), "transposed"_a = false, "n_threads"_a);
  bind_pair(m, "subtract_moments", &core::subtract_moments, "subtracted");
  bind_pair(m, "merge_moments", &core::merge_moments, "merged");
}

}  // namespace pydfm::bindings
