// The product of two thin matrices and what a signal keeps when it was sent, in one pass.
#pragma once

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

}  // namespace sage::cpu
