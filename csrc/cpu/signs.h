// Sign methods: one bit per element, set if it is not below 0, and two numbers per group, which stand for the elements
// below 0 and for the others. One pass writes the bits and the error; another adds the values of several payloads.
#pragma once

#include "groups.h"

namespace sage::cpu {

// What a rank sends: pointers are to the vector's first element, group or byte.
struct Signs {
  float* signal;
  const int64_t* bounds;
  int64_t num_groups;
  const float *low, *high;  // of each group
  uint8_t* bits;
};

// The signs of a momentum, m = beta·m + (1 − beta)·signal, in which what is not finite counts as 0. The second product
// and the sum are rounded once, as torch's `add_` with a factor does.
struct MomentumSigns {
  float* momentum;
  const float* signal;
  float beta, rest;  // beta, and 1 − beta
  uint8_t* bits;
};

// The mean of several payloads. Row w of low and high has num_groups numbers, and row w of the bits num_bytes bytes.
struct SignMean {
  float* out;
  const int64_t* bounds;
  int64_t num_groups;
  const float *low, *high;
  const uint8_t* bits;
  int64_t num_bytes, num_payloads, divisor;
  bool added;  // to what `out` holds
  bool votes;  // the sign of the sum instead of the sum / divisor
  bool streams = false;  // whether `out` is written past the caches; its address is then a multiple of 64
};

}  // namespace sage::cpu

#define SAGE_KERNEL "signs_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

inline void write_signs(Isa isa, const Team& team, const Signs& x, bool keep, int64_t n) {
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, sign_range, x, keep, part_begin(n, parts, part), part_begin(n, parts, part + 1));
  });
}

// Returns the largest magnitude of the signal.
inline uint32_t momentum_signs(Isa isa, const Team& team, const MomentumSigns& x, int64_t n) {
  const int64_t parts = team.parts(n);
  std::vector<uint32_t> largest(parts);
  team.each(parts, [&](int64_t part) {
    largest[part] = SAGE_CHOOSE(isa, momentum_range, x, part_begin(n, parts, part), part_begin(n, parts, part + 1));
  });
  return *std::max_element(largest.begin(), largest.end());
}

inline void mean_signs(Isa isa, const Team& team, SignMean x, int64_t n) {
  const int64_t parts = team.parts(n);
  x.streams = !x.added && may_stream(x.out, n);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, mean_of_signs, x, part_begin(n, parts, part), part_begin(n, parts, part + 1));
  });
}

}  // namespace sage::cpu
