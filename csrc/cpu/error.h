// What a signal keeps of itself when something was sent.
#pragma once

#include <bit>

#include "base.h"

namespace sage::cpu {

SAGE_CLONES static void keep_error(float* signal, const float* sent, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float left = signal[i] - sent[i];
    signal[i] = (std::bit_cast<uint32_t>(left) & kMagnitude) < 0x7f800000u ? left : 0.0f;
  }
}

// signal -= sent; what is not finite becomes 0.
inline void keep_error(const Team& team, float* signal, const float* sent, int64_t n) {
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) {
    const int64_t begin = part_begin(n, parts, part);
    keep_error(signal + begin, sent + begin, part_begin(n, parts, part + 1) - begin);
  });
}

}  // namespace sage::cpu
