// Products of packed factors beside Eigen's, for sizes around those of a panel and of a tile.
#include "kernels/packed_products.hpp"

#include <string>

#include "check.hpp"

namespace {

using namespace pydfm::testing;
using pydfm::Entries;
using pydfm::Index;
using pydfm::Matrix;
using pydfm::Packed;
using pydfm::Vector;

Packed by_elements(const Matrix<double>& vectors) {
  Packed packed(vectors.rows(), vectors.cols());
  for (Index p = 0; p < vectors.cols(); ++p) packed.set_element(p, vectors.col(p));
  return packed;
}

Packed by_panels(const Matrix<double>& vectors) {
  Packed packed(vectors.rows(), vectors.cols());
  for (Index i = 0; i < vectors.rows(); i += Packed::kWidth) {
    Matrix<double> panel = Matrix<double>::Zero(Packed::kWidth, vectors.cols());
    const Index height = std::min(Packed::kWidth, vectors.rows() - i);
    panel.topRows(height) = vectors.middleRows(i, height);
    packed.set_panel(i / Packed::kWidth, panel);
  }
  return packed;
}

void products_are_eigens() {
  for (const Index depth : {1, 7, 8, 129, 300}) {
    for (const Index n : {1, 8, 23, 49}) {
      const Matrix<double> left = normal(n, depth, 1);
      for (const Index m : {1, 24, 30}) {
        const std::string what =
            std::to_string(n) + " x " + std::to_string(depth) + " x " + std::to_string(m);
        const Matrix<double> right = normal(m, depth, 2);
        const Matrix<double> c = normal(n, m, 3);
        const Matrix<double> expected = c + left * right.transpose();
        // Columns beside the product's must stay as they are.
        Matrix<double> sum = Matrix<double>::Constant(n, m + 9, 5);
        sum.leftCols(m) = c;
        pydfm::add_products(by_elements(left), by_panels(right), Entries::kAll, sum.leftCols(m));
        check_at_most(largest(sum.leftCols(m) - expected), 1e-12, what);
        check((sum.rightCols(9).array() == 5).all(), what + ", nothing beside it");
      }
    }
  }
}

void lower_products_are_eigens() {
  for (const Index n : {1, 8, 23, 24, 55}) {
    const Matrix<double> rows = normal(n, 40, 4);
    const Packed packed = by_panels(rows);
    Matrix<double> sum = Matrix<double>::Zero(n, n);
    pydfm::add_products(packed, packed, Entries::kLower, sum);
    const Matrix<double> error = (sum - rows * rows.transpose()).triangularView<Eigen::Lower>();
    check_at_most(largest(error), 1e-12, "lower " + std::to_string(n));
  }
}

void elements_are_set_less_a_shift_and_added_up() {
  const Eigen::MatrixXf values = normal(21, 10, 5).cast<float>();
  const Vector<double> shift = normal(21, 1, 6);
  Matrix<double> expected = values.cast<double>();
  expected.colwise() -= shift;
  expected.col(3).setZero();
  Packed packed(21, 10);
  for (Index p = 0; p < 10; ++p) packed.set_element(p, values.col(p).data(), shift.data());
  packed.clear_element(3);
  Matrix<double> sum = Matrix<double>::Zero(21, 10);
  pydfm::add_products(packed, by_elements(Matrix<double>::Identity(10, 10)), Entries::kAll, sum);
  check(same(sum, expected), "vectors less their shift");
  check_at_most(largest(packed.sums() - expected.rowwise().sum()), 1e-14, "sums of elements");
}

}  // namespace

int main() {
  products_are_eigens();
  lower_products_are_eigens();
  elements_are_set_less_a_shift_and_added_up();
  return pydfm::testing::result();
}
