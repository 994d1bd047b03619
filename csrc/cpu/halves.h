// The two formats of 16 bits, one number at a time. Rounding is to nearest, ties to even; what is too large becomes
// infinity; NaN stays NaN.
#pragma once

#include "base.h"

namespace sage::cpu {

enum class Format { fp16, bf16 };

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <Format kFormat>
uint16_t narrow(float x) {
  const uint32_t bits = bits_of(x), size = bits & kMagnitude, sign = bits >> 16 & 0x8000u;
  if constexpr (kFormat == Format::bf16) {
    if (size > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  } else {
    if (size > 0x7f800000u) return 0x7e00;
    if (size >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and above
    // Below 2^-14 the spacing is 2^-24, as it is of float32 from 0.5 on: the addition rounds.
    if (size < 0x38800000u) return static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u));
    return static_cast<uint16_t>(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13);
  }
}

template <Format kFormat>
float widen(uint16_t half) {
  if constexpr (kFormat == Format::bf16) return float_of(static_cast<uint32_t>(half) << 16);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size < 0x400u) return float_of(sign | bits_of(static_cast<float>(size) * 0x1p-24f));
  if (size < 0x7c00u) return float_of(sign | ((size << 13) + 0x38000000u));
  return float_of(sign | 0x7f800000u | (size << 13) | (size > 0x7c00u ? 0x400000u : 0));
}

}  // namespace sage::cpu
