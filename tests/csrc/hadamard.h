// Tests of the randomised Hadamard transform, for kernels.cpp: every instruction set against the scalar one, and the
// scalar one against the sums that define it.
#pragma once

#include "../../csrc/cpu/hadamard.h"
#include "drawn.h"

inline void test_hadamard(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n, const std::vector<int64_t>& bounds) {
  const int64_t bucket = int64_t{16} << below(10);
  const std::vector<int64_t> buckets = sage::cpu::bucket_bounds(bounds, bucket);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1;
  const uint64_t key = generator();
  const bool inverse = below(2);
  const Floats signal = draw(n);
  Floats ours = signal, theirs = signal;
  sage::cpu::hadamard(isa, team, {ours.data(), buckets.data(), num, bucket, key, inverse});
  sage::cpu::hadamard(sage::cpu::Isa::scalar, {1, {}}, {theirs.data(), buckets.data(), num, bucket, key, inverse});
  expect(alike(ours, theirs), "hadamard");
  if (num == 0) return;
  // A one at a random place of a part becomes 1/√length or its negative at every place of that part.
  const int64_t b = below(num);
  int64_t begin = buckets[b], length = sage::cpu::part_of(buckets[b + 1] - begin);
  while (below(2) && begin + length < buckets[b + 1]) {
    begin += length;
    length = sage::cpu::part_of(buckets[b + 1] - begin);
  }
  Floats one(n);
  one[begin + below(length)] = 1;
  sage::cpu::hadamard(isa, team, {one.data(), buckets.data(), num, bucket, key, false});
  for (int64_t i = 0; i < n; ++i) {
    const bool within = i >= begin && i < begin + length;
    expect(std::fabs(one[i]) == (within ? sage::cpu::orthonormal(length) : 0.0f), "hadamard: spread");
  }
}
