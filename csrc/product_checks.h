// Checks of the arguments of products with thin matrices, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

// Checks the product of a matrix with `rank` columns and one with as many rows, all of them flat.
inline void check_product(const Tensor& out, const std::optional<Tensor>& signal, const Tensor& left,
                          const Tensor& right, int64_t rank) {
  STD_TORCH_CHECK(rank >= 1, "rank: ", rank, ": expected 1 or more");
  for (const auto& [name, x] : {std::pair{"left", &left}, std::pair{"right", &right}})
    STD_TORCH_CHECK(x->numel() % rank == 0, name, " has ", x->numel(), " elements: expected a multiple of rank ", rank);
  const int64_t n = left.numel() / rank * (right.numel() / rank);
  check_numel(out, n, "out");
  if (!signal) return;
  check_numel(*signal, n, "signal");
  STD_TORCH_CHECK(n == 0 || signal->const_data_ptr() != out.const_data_ptr(),
                  "signal and out are one vector: expected two");
}

// Checks a matrix of `rows` rows and a thin one of `rank` columns, both flat, and returns the elements of a column of
// their product.
inline int64_t check_thin(const Tensor& matrix, const std::optional<Tensor>& grad, const Tensor& basis, int64_t rows,
                          int64_t rank, bool transposed) {
  STD_TORCH_CHECK(rank >= 1, "rank: ", rank, ": expected 1 or more");
  STD_TORCH_CHECK(rows >= 1 && matrix.numel() % rows == 0, "rows: ", rows, ": expected 1 or more that divide the ",
                  matrix.numel(), " elements of matrix");
  const int64_t columns = matrix.numel() / rows;
  check_numel(basis, rank * (transposed ? rows : columns), "basis");
  if (grad) check_numel(*grad, matrix.numel(), "grad");
  return transposed ? columns : rows;
}

}  // namespace sage
