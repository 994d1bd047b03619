// Tests of the product of two thin matrices, for kernels.cpp.
#pragma once

#include "../../csrc/cpu/product.h"
#include "drawn.h"

inline void test_product(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n) {
  const int64_t rows = n < 8 ? n : 1 + below(7), columns = n / std::max<int64_t>(rows, 1), rank = 1 + below(4);
  const Floats left = draw(rows * rank), right = draw(rank * columns), signal = draw(rows * columns);
  Floats out(rows * columns), kept = signal;
  const bool keeps = below(2);
  write_product(isa, team, left.data(), right.data(), rows, rank, columns, out.data(), keeps ? kept.data() : nullptr);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = i * columns + j;
      float sum = left[i * rank] * right[j];
      for (int64_t k = 1; k < rank; ++k) {
        const float one = left[i * rank + k] * right[k * columns + j];
        sum += one;
      }
      const float left_over = signal[at] - sum;
      const float expected = !keeps ? signal[at] : std::isfinite(left_over) ? left_over : 0.0f;
      expect((std::isnan(sum) && std::isnan(out[at])) || !std::memcmp(&out[at], &sum, 4), "product");
      expect(!std::memcmp(&kept[at], &expected, 4), "product: signal");
    }
}
