// The randomised Walsh-Hadamard transform of each bucket: random signs, then butterflies, then a factor that makes it
// orthonormal; the inverse has the signs last. A bucket whose length is no power of two is cut into parts that are, the
// longest first, and each is transformed by itself.
#pragma once

#include <cmath>

#include "philox.h"

namespace sage::cpu {

constexpr int64_t kMostInTransform = 8192;  // elements of a bucket

struct Hadamard {
  float* x;
  const int64_t* bounds;  // of the buckets
  int64_t num_buckets;
  int64_t bucket;  // elements, a power of two from 16 on; the last one of a group may be shorter
  uint64_t key;    // of the signs: element i of bucket b has bit i % 16 of the random half b·bucket/16 + i/16
  bool inverse;
};

// The longest part that a bucket of n elements begins with.
inline int64_t part_of(int64_t n) { return int64_t{1} << (63 - __builtin_clzll(static_cast<unsigned long long>(n))); }

inline float orthonormal(int64_t n) { return static_cast<float>(1 / std::sqrt(static_cast<double>(n))); }

// The same of a part of fewer than 16 elements, of which the first has the lowest bit of the signs.
inline void transform_few(float* x, int64_t n, uint32_t signs, bool inverse) {
  const auto flip = [&](int64_t i) { x[i] = signs >> i & 1 ? -x[i] : x[i]; };
  if (!inverse)
    for (int64_t i = 0; i < n; ++i) flip(i);
  for (int64_t h = 1; h < n; h *= 2)
    for (int64_t i = 0; i < n; ++i) {
      if (i & h) continue;
      const float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
  for (int64_t i = 0; i < n; ++i) x[i] *= orthonormal(n);
  if (inverse)
    for (int64_t i = 0; i < n; ++i) flip(i);
}

}  // namespace sage::cpu

#define SAGE_KERNEL "hadamard_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

inline void hadamard(Isa isa, const Team& team, const Hadamard& x) {
  const int64_t num = x.num_buckets, parts = std::min(std::max<int64_t>(num, 1), team.parts(x.bounds[num]));
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, transform_buckets, x, num * part / parts, num * (part + 1) / parts);
  });
}

}  // namespace sage::cpu
