// One element's code, and what it stands for: rounded as by cpu/levels_kernel.h.
#pragma once

#include "../dynamic_tree.h"
#include "groups.cuh"

namespace sage::cuda {

__device__ __forceinline__ float power_of_two(int exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); }

// The smaller one; the second where one is NaN.
__device__ __forceinline__ float least(float a, float b) { return a < b ? a : b; }

__device__ __forceinline__ uint32_t nearest(float x) { return static_cast<uint32_t>(static_cast<int32_t>(rintf(x))); }

__device__ const Tree kTree{};

// The code of y = x / scale · most; `random` has 16 bits.
template <Codec kCodec>
__device__ __forceinline__ uint32_t code_of(const Coding& coding, float y, uint32_t random) {
  const uint32_t sign = bits_of(y) & 0x80000000u, whole = bits_of(y) & kMagnitude;
  const float size = float_of(whole);
  if constexpr (kCodec == Codec::int8) return nearest(float_of(bits_of(least(size, 127)) | sign));
  if constexpr (kCodec == Codec::e4m3 || kCodec == Codec::e5m2) {
    constexpr int kShift = kCodec == Codec::e4m3 ? 20 : 21, kBias = kCodec == Codec::e4m3 ? 7 : 15;
    constexpr int kMantissa = 23 - kShift;
    if (size < power_of_two(1 - kBias)) return nearest(size * power_of_two(kBias - 1 + kMantissa)) | sign >> 24;
    const uint32_t clamped = bits_of(least(size, coding.most)), odd = clamped >> kShift & 1;
    const uint32_t rounded = clamped + ((1u << (kShift - 1)) - 1) + odd;
    return ((rounded >> kShift) - (static_cast<uint32_t>(127 - kBias) << kMantissa)) | sign >> 24;
  }
  if constexpr (kCodec == Codec::e2m1) {
    const float clamped = least(size, 6);
    if (clamped < 2) return nearest(clamped * 2) | sign >> 28;  // the values are 1/2 apart
    const uint32_t rounded = bits_of(clamped) + ((1u << 21) - 1) + (bits_of(clamped) >> 22 & 1);
    return ((rounded >> 22) - (126u << 1)) | sign >> 28;
  }
  if constexpr (kCodec == Codec::tree) {
    const uint32_t own = whole >> Tree::kLow, from = own < Tree::kFirst ? Tree::kFirst : own;
    const uint32_t found = kTree.cell[(from < Tree::kLast ? from : Tree::kLast) - Tree::kFirst];
    return (found + (whole & Tree::kLowBits)) >> Tree::kLow | sign >> 24;
  }
  const float uniform = (static_cast<float>(random) + 0.5f) * 0x1p-16f;
  const uint32_t center = static_cast<uint32_t>(coding.levels), offset = static_cast<uint32_t>(coding.offset);
  const uint32_t carried = whole + (random << 7) + 64;
  if constexpr (kCodec == Codec::linear) {
    const float low = floorf(size);
    const float level = least(uniform < size - low ? low + 1 : low, static_cast<float>(coding.levels));
    return nearest(static_cast<float>(coding.levels) + float_of(bits_of(level) | sign));
  }
  if constexpr (kCodec == Codec::natural || kCodec == Codec::power8) {
    const uint32_t above = (carried >> 23) - offset, high = above < center ? above : center;
    const uint32_t low = uniform < size * power_of_two(126 - coding.offset);
    const uint32_t level = whole < (offset + 1) << 23 ? low : high;
    if constexpr (kCodec == Codec::power8) return level | sign >> 24;
    return sign ? center - level : center + level;
  }
  const uint32_t finite = carried < 0x7f000000u ? carried : 0x7f000000u, exponent = whole & 0x7f800000u;
  return (finite > exponent ? finite : exponent) >> 23;
}

// What a code stands for, as a multiple of the bucket's step.
template <Codec kCodec>
__device__ __forceinline__ float value_of(const Coding& coding, uint32_t code) {
  if constexpr (kCodec == Codec::int8) return static_cast<float>(static_cast<int32_t>((code ^ 0x80) - 0x80));
  const int32_t level = static_cast<int32_t>(code) - coding.levels;
  if constexpr (kCodec == Codec::linear) return static_cast<float>(level);
  const uint32_t low = code & 0x7f, sign = (code & 0x80) << 24, offset = static_cast<uint32_t>(coding.offset);
  if constexpr (kCodec == Codec::e4m3 || kCodec == Codec::e5m2) {
    constexpr int kShift = kCodec == Codec::e4m3 ? 20 : 21, kBias = kCodec == Codec::e4m3 ? 7 : 15;
    constexpr int kMantissa = 23 - kShift, kDown = kCodec == Codec::e4m3 ? 8 : 15;
    float size = low < 1u << kMantissa ? static_cast<float>(low) * power_of_two(1 - kBias - kMantissa - kDown)
                                       : float_of((low << kShift) + (static_cast<uint32_t>(127 - kBias - kDown) << 23));
    if (kCodec == Codec::e5m2 && low == 0x7c) size = float_of(0x7f800000u);
    if (low > (kCodec == Codec::e4m3 ? 0x7e : 0x7c)) size = float_of(0x7fc00000u);
    return float_of(bits_of(size) | sign);
  }
  if constexpr (kCodec == Codec::e2m1) {
    const uint32_t magnitude = code & 7;
    const float size = magnitude < 2 ? static_cast<float>(magnitude) * 0.5f : float_of((magnitude << 22) + (126u << 23));
    return float_of(bits_of(size) | (code & 8) << 28);
  }
  if constexpr (kCodec == Codec::natural) {
    const uint32_t size = static_cast<uint32_t>(level < 0 ? -level : level);
    return float_of((size ? (size + offset) << 23 : 0) | (level < 0 ? 0x80000000u : 0));
  }
  if constexpr (kCodec == Codec::tree) return float_of(bits_of(kTree.value[low]) | sign);
  if constexpr (kCodec == Codec::power8) return float_of((low ? (low + offset) << 23 : 0) | sign);
  return float_of((code & 0xff) << 23);
}

// a · prescale · inverse is what is rounded, in two factors, so that neither overflows; code · step is the value. The tree
// divides by the scale.
struct Numbers {
  float prescale, inverse, step;

  __device__ Numbers(const Coding& coding, float scale)
      : prescale(scale < 0x1p-64f ? 0x1p64f : scale > 0x1p64f ? 0x1p-64f : 1.0f),
        inverse(scale > 0 && magnitude(scale) < 0x7f800000u ? coding.most / (scale * prescale) : 0),
        step(scale / coding.unit) {
    if (coding.codec == Codec::tree) inverse = scale > 0 ? scale : 1;
  }

  // What is rounded of an element. The tree's has its sign, or that of 0 where it is NaN.
  template <Codec kCodec>
  __device__ __forceinline__ float scaled(float a) const {
    if constexpr (kCodec != Codec::tree) return a * prescale * inverse;
    const uint32_t sign = magnitude(a) > 0x7f800000u ? 0 : bits_of(a) & 0x80000000u;
    return float_of(magnitude(float_of(magnitude(a)) / inverse) | sign);
  }
};

}  // namespace sage::cuda
