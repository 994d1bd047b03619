// Casts between float32 and the two formats of 16 bits, fused with the rest of a dense reduction.
#pragma once

#include "groups.h"
#include "halves.h"

namespace sage::cpu {

// A rank's share of the mean: share = cast(signal / W), where the signal is residual + grad, and without a residual
// the gradient. The error of the cast, signal - share * W, is left in the residual: 0 where it is not finite.
struct Share {
  const float* grad;
  float* residual;  // may be null
  uint16_t* share;
  float world_size;

  bool streams = false;  // whether the share is written past the caches; its address is then a multiple of 64

  // Whether multiplying by 1 / W gives the bits of dividing by W, in less time.
  bool is_exact() const { return (bits_of(world_size) & 0x7fffffu) == 0; }
};

}  // namespace sage::cpu

#define SAGE_KERNEL "cast_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// Runs work(begin, end) on each thread's part of n elements.
template <class Work>
void each_part(const Team& team, int64_t n, const Work& work) {
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) { work(part_begin(n, parts, part), part_begin(n, parts, part + 1)); });
}

inline void cast_share(Isa isa, const Team& team, Format format, Share x, int64_t n) {
  x.streams = may_stream(x.share, n);
  each_part(team, n, [&](int64_t begin, int64_t end) { SAGE_CHOOSE(isa, share_range, format, x, begin, end); });
}

// out = cast(sum of `num_rows` rows of n elements); out is not in the rows.
inline void sum_casts(Isa isa, const Team& team, Format format, const uint16_t* rows, int64_t num_rows, uint16_t* out,
                      int64_t n) {
  each_part(team, n, [&](int64_t begin, int64_t end) {
    SAGE_CHOOSE(isa, sum_range, format, rows, num_rows, n, out, begin, end);
  });
}

inline void widen(Isa isa, const Team& team, Format format, const uint16_t* x, float* out, int64_t n) {
  const bool streams = may_stream(out, n);
  each_part(team, n, [&](int64_t begin, int64_t end) {
    SAGE_CHOOSE(isa, widen_range, format, x, out, begin, end, streams);
  });
}

}  // namespace sage::cpu
