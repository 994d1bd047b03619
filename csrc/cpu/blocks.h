// Quantises to 8 bits, bucket by bucket, without random bits (int8 and fp8). A bucket is read from memory once: its
// scale is found in one pass, in which the gradient and the values of payloads are added, and its codes are written in
// a second one, which finds it in the nearest cache. The bits are those of levels.h.
#pragma once

#include "levels.h"

namespace sage::cpu {

// signal = (signal + grad + Σ_w values_w) / divisor, its codes, and error · divisor.
struct Blocks {
  Coding coding;
  float* signal;
  const float* grad;  // null: none
  int64_t numel;
  const int64_t* bounds;  // of the buckets
  int64_t num_buckets;
  const uint8_t* payloads;  // num_payloads rows of numel codes
  const float* step;        // of each bucket, num_payloads numbers
  int64_t num_payloads, divisor;
  bool keep;  // whether the error is left in the signal; without it there are no payloads
  uint8_t* bytes;
  float* scales;
};

}  // namespace sage::cpu

#define SAGE_KERNEL "blocks_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// Whether the buckets are to be quantised one after the other: both passes over one must fit into a cache.
inline bool is_by_blocks(const Coding& coding, Kind kind, const std::vector<int64_t>& bounds) {
  if (coding.codec > Codec::e5m2 || kind != Kind::largest) return false;
  for (size_t b = 0; b + 1 < bounds.size(); ++b)
    if (bounds[b + 1] - bounds[b] > kResident) return false;
  return true;
}

// `scales` are those of the payloads: num_payloads rows of num_buckets numbers.
inline void quantise_blocks(Isa isa, const Team& team, Blocks x, const float* scales) {
  std::vector<float> step(x.num_payloads * x.num_buckets);
  for (int64_t b = 0; b < x.num_buckets; ++b)
    for (int64_t w = 0; w < x.num_payloads; ++w)
      step[b * x.num_payloads + w] = scales[w * x.num_buckets + b] / x.coding.unit();
  x.step = step.data();
  const int64_t parts = team.parts(x.numel);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, quantise_blocks, x, x.num_buckets * part / parts, x.num_buckets * (part + 1) / parts);
  });
}

}  // namespace sage::cpu
