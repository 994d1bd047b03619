// Tests of products with thin matrices, for kernels.cpp.
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

// The sum over the elements of one row or column, in the order that thin_product defines.
inline float thin_sum(const float* x, int64_t stride, const float* q, int64_t num, bool transposed) {
  float lanes[16] = {}, total = 0, some = 0;
  for (int64_t i = 0; i < num; ++i) {
    const float one = x[i * stride] * q[i];
    if (!transposed) {
      lanes[i % 16] += one;
      continue;
    }
    some += one;
    if (i % 64 == 63 || i + 1 == num) {
      total += some;
      some = 0;
    }
  }
  if (transposed) return total;
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

inline void test_thin_product(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n) {
  const int64_t rows = 1 + below(n < 200 ? n + 1 : 200), columns = n / rows, rank = 1 + below(6);
  const bool transposed = below(2);
  const int64_t length = transposed ? columns : rows, num = transposed ? rows : columns;
  if (columns == 0) return;
  Floats x = draw(rows * columns), out(rank * length);
  const Floats grad = draw(rows * columns), basis = draw(rank * num), before = x;
  const bool adds = below(2);
  const float* added = adds ? grad.data() : nullptr;
  thin_product(isa, team, x.data(), added, basis.data(), rows, columns, rank, transposed, out.data());
  for (int64_t i = 0; i < rows * columns; ++i) {
    const float sum = adds ? before[i] + grad[i] : before[i];
    expect((std::isnan(sum) && std::isnan(x[i])) || !std::memcmp(&x[i], &sum, 4), "thin product: signal");
  }
  for (int64_t k = 0; k < rank; ++k)
    for (int64_t i = 0; i < length; ++i) {
      const float* from = x.data() + (transposed ? i : i * columns);
      const float sum = thin_sum(from, transposed ? columns : 1, basis.data() + k * num, num, transposed);
      const float ours = out[k * length + i];
      expect((std::isnan(sum) && std::isnan(ours)) || !std::memcmp(&ours, &sum, 4), "thin product");
    }
}
