// The CUDA kernels that have groups, or random bits, against the CPU's. Include it behind the kernels of the GPU.
#pragma once

#include "../../csrc/cpu/philox.h"
#include "drawn.h"

inline const sage::cpu::Team kAlone{1, {}};

inline void test_random_bits(int64_t n) {
  const uint64_t key = generator();
  const int64_t first = Ints{0, 1, 127, 128, 1 << 30}[below(5)] * (1 + below(9));
  Ints ours(n), theirs(n);
  sage::cuda::random_bits(key, first, n, ours.data(), nullptr);
  sage::cpu::random_bits(sage::cpu::isa(), key, first, n, theirs.data());
  expect(ours == theirs, "random_bits");
}
