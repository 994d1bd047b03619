// The product of two thin matrices and what a signal keeps when it was sent, in one pass; and the product of a matrix
// and a thin one.
#pragma once

#include <vector>

#include "base.h"

#define SAGE_KERNEL "product_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// out = left·right, of rows × rank and rank × columns elements; signal, unless null, -= out, and what is not finite
// becomes 0.
inline void write_product(Isa isa, const Team& team, const float* left, const float* right, int64_t rows, int64_t rank,
                          int64_t columns, float* out, float* signal) {
  const int64_t parts = std::min(std::max<int64_t>(rows, 1), team.parts(rows * columns));
  const bool streams = columns % 16 == 0 && may_stream(out, rows * columns);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, product_rows, left, right, rank, columns, rows * part / parts, rows * (part + 1) / parts, out,
                signal, streams);
  });
}

// x += grad, unless that is null; then out[k] = x·basis[k] for each of the `rank` rows of basis, where x has rows ×
// columns elements, or with `transposed` out[k] = xᵀ·basis[k]. The order of the sums does not depend on the threads.
inline void thin_product(Isa isa, const Team& team, float* x, const float* grad, const float* basis, int64_t rows,
                         int64_t columns, int64_t rank, bool transposed, float* out) {
  if (!transposed) {
    const int64_t parts = std::min(rows, team.parts(rows * columns));
    team.each(parts, [&](int64_t part) {
      SAGE_CHOOSE(isa, products_of_rows, x, grad, basis, rows, columns, rank, rows * part / parts,
                  rows * (part + 1) / parts, out);
    });
    return;
  }
  const int64_t blocks = (columns + 15) / 16, parts = std::max<int64_t>(1, std::min(blocks, team.parts(rows * columns)));
  std::vector<float> sums(rank * columns);  // of the rows at hand
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, products_of_columns, x, grad, basis, rows, columns, rank, blocks * part / parts * 16,
                std::min(columns, blocks * (part + 1) / parts * 16), sums.data(), out);
  });
}

}  // namespace sage::cpu
