// Takes given elements out of signal + gradient in one pass over memory.
#pragma once

#include "scatter.h"
#include "select.h"

namespace sage::cpu {

// Returns whether each index is above the one before it.
SAGE_CLONES static bool rises(const int32_t* at, int64_t num) {
  int32_t falls = 0;
  for (int64_t i = 1; i < num; ++i) falls |= at[i] <= at[i - 1];
  return !falls;
}

SAGE_CLONES static void add_to(float* signal, const float* grad, int64_t n) {
  for (int64_t i = 0; i < n; ++i) signal[i] += grad[i];
}

inline void gather(float* signal, const int32_t* at, int64_t num, bool keep, float* values) {
  constexpr int64_t kSoon = 32;
  for (int64_t i = 0; i < num; ++i) {
    __builtin_prefetch(signal + at[std::min(i + kSoon, num - 1)], 1);
    values[i] = signal[at[i]];
    if (keep) signal[at[i]] = 0;
  }
}

// signal += grad, where there is a gradient; then writes the values of `num` elements and, with `keep`, leaves 0 there.
// Indices must be in the vector.
inline void take_at(const Team& team, float* signal, const float* grad, int64_t n, const int32_t* at, int64_t num,
                    bool keep, float* values) {
  const bool rising = rises(at, num);
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) {
    const int64_t begin = part_begin(n, parts, part), end = part_begin(n, parts, part + 1);
    const int32_t* next = std::lower_bound(at, rising ? at + num : at, begin);
    if (!grad && rising) {
      const int32_t* stop = std::lower_bound(next, at + num, end);
      return gather(signal, next, stop - next, keep, values + (next - at));
    }
    for (int64_t from = begin; grad && from < end; from += kBlock) {
      const int64_t until = std::min(from + kBlock, end);
      add_to(signal + from, grad + from, until - from);
      if (!rising) continue;
      const int32_t* stop = std::lower_bound(next, at + num, until);
      gather(signal, next, stop - next, keep, values + (next - at));
      next = stop;
    }
  });
  if (rising) return;
  gather(signal, at, num, false, values);  // an index may be there twice
  for (int64_t i = 0; keep && i < num; ++i) signal[at[i]] = 0;
}

}  // namespace sage::cpu
