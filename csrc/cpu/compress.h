// The selection in one block: a = signal + gradient; elements at or above a limit are compacted into a list, and set
// to zero in the signal. 64 elements share one branch: if none of them is taken, which is the common case, only the
// sum is computed.
#pragma once

#include <array>

#include "base.h"

namespace sage::cpu {

constexpr int64_t kGroup = 64;

constexpr int kBinShift = 17;  // bins are the exponent and the 6 first bits of the mantissa: 1.1 to 1.6 % wide
constexpr int64_t kBins = int64_t{1} << (31 - kBinShift);

// The operations of a pass on each element. Pointers are to the vector's first element.
struct Pass {
  float* signal;
  float* grad = nullptr;      // added to the signal, where there is one
  uint32_t limit = kNothing;  // magnitude from which an element is taken
  bool keep = true;           // whether 0 is left in the signal where an element was taken
  bool clear = false;         // whether 0 is left in the gradient
  int32_t* bins = nullptr;    // counts of magnitudes, in every `every`-th of the vector's groups of 64
  int64_t every = 1;

  // Returns the first group that is counted from element `begin` on; without bins, a value that is never reached.
  int64_t first_counted(int64_t begin) const {
    const int64_t step = every * kGroup;
    return bins ? (begin + step - 1) / step * step : INT64_MAX;
  }
};

// Returns how many of n magnitudes are at or above a limit. The compiler vectorizes it for AVX2 and AVX-512 too.
SAGE_CLONES static int64_t num_at_least(const float* x, int64_t n, uint32_t limit) {
  int64_t num = n;
  for (int64_t begin = 0; begin < n; begin += 65536) {
    uint32_t below = 0;  // 32 bits in the inner loop, as wide as the elements
    for (int64_t i = begin; i < std::min(n, begin + 65536); ++i) below += magnitude(x[i]) < limit;
    num -= below;
  }
  return num;
}

inline void count(int32_t* bins, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) ++bins[magnitude(x[i]) >> kBinShift];
}

constexpr int64_t kOver = 16;  // a whole register is stored, so up to 15 elements beyond the last are overwritten
constexpr int64_t kAhead = 512;  // elements: 2 KB, as far as prefetching pays

template <bool kAdd>
int64_t block_scalar(const Pass& pass, int64_t begin, int64_t end, float* values, int32_t* indices) {
  int64_t size = 0, counted = pass.bins ? begin : INT64_MAX;
  for (int64_t i = begin; i < end; ++i) {
    float a = pass.signal[i];
    if constexpr (kAdd) {
      a += pass.grad[i];
      if (pass.clear) pass.grad[i] = 0;
    }
    if (i >= counted && i / kGroup % pass.every == 0) count(pass.bins, &a, 1);
    values[size] = a;
    indices[size] = static_cast<int32_t>(i);
    const bool taken = magnitude(a) >= pass.limit;
    size += taken;
    pass.signal[i] = taken && pass.keep ? 0.0f : a;
  }
  return size;
}

#if SAGE_X86

// kPick[mask]: the lanes whose bit is set in the mask, in ascending order.
inline constexpr auto kPick = [] {
  std::array<std::array<int32_t, 8>, 256> pick{};
  for (int mask = 0; mask < 256; ++mask) {
    int next = 0;
    for (int lane = 0; lane < 8; ++lane)
      if (mask >> lane & 1) pick[mask][next++] = lane;
  }
  return pick;
}();

template <bool kAdd>
__attribute__((target("avx2,popcnt"))) int64_t block_avx2(
    const Pass& pass, int64_t begin, int64_t end, float* values, int32_t* indices) {
  constexpr int kLanes = 8, kParts = kGroup / kLanes;
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude);
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(pass.limit - 1));
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const bool keep = pass.keep, clear = pass.clear;
  int64_t size = 0, i = begin, counted = pass.first_counted(begin);
  for (; i + kGroup <= end; i += kGroup) {
    float* signal = pass.signal + i;
    __m256 a[kParts];
    __m256i taken[kParts], any = _mm256_setzero_si256();
    for (int part = 0; part < kGroup / 16; ++part) {
      _mm_prefetch(reinterpret_cast<const char*>(signal + kAhead + part * 16), _MM_HINT_T0);
      if constexpr (kAdd) _mm_prefetch(reinterpret_cast<const char*>(pass.grad + i + kAhead + part * 16), _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) {
      a[part] = _mm256_loadu_ps(signal + part * kLanes);
      if constexpr (kAdd) a[part] = _mm256_add_ps(a[part], _mm256_loadu_ps(pass.grad + i + part * kLanes));
      taken[part] = _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(a[part]), magnitudes), below);
      any = _mm256_or_si256(any, taken[part]);
    }
    if (kAdd && clear)
#pragma GCC unroll 8
      for (int part = 0; part < kParts; ++part) _mm256_storeu_ps(pass.grad + i + part * kLanes, _mm256_setzero_ps());
    if (i == counted) {
      float sums[kGroup];
      for (int part = 0; part < kParts; ++part) _mm256_storeu_ps(sums + part * kLanes, a[part]);
      count(pass.bins, sums, kGroup);
      counted += pass.every * kGroup;
    }
    if (_mm256_testz_si256(any, any)) {
      if constexpr (kAdd)
#pragma GCC unroll 8
        for (int part = 0; part < kParts; ++part) _mm256_storeu_ps(signal + part * kLanes, a[part]);
      continue;
    }
    __builtin_prefetch(values + size + kGroup, 1);
    __builtin_prefetch(indices + size + kGroup, 1);
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) {
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(taken[part]));
      const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[mask].data()));
      const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int32_t>(i) + part * kLanes), lanes);
      _mm256_storeu_ps(values + size, _mm256_permutevar8x32_ps(a[part], pick));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + size), _mm256_permutevar8x32_epi32(at, pick));
      size += __builtin_popcount(mask);
      if (keep) a[part] = _mm256_andnot_ps(_mm256_castsi256_ps(taken[part]), a[part]);
      _mm256_storeu_ps(signal + part * kLanes, a[part]);
    }
  }
  return size + block_scalar<kAdd>(pass, i, end, values + size, indices + size);
}

// Stores the lanes of a mask at the front of two lists and returns their number. The lanes are compressed in the
// register and then stored, because compression into memory is microcoded on some processors. If there are few lanes,
// only a quarter of the register is stored, which rarely crosses a cache line.
__attribute__((target("avx512f,popcnt"))) inline int64_t store(__mmask16 mask, __m512 value, __m512i at,
                                                               float* values, int32_t* indices) {
  const int num = __builtin_popcount(mask);
  value = _mm512_maskz_compress_ps(mask, value);
  at = _mm512_maskz_compress_epi32(mask, at);
  if (num <= 4) [[likely]] {
    std::memcpy(values, &value, 4 * sizeof *values);
    std::memcpy(indices, &at, 4 * sizeof *indices);
  } else {
    _mm512_storeu_ps(values, value);
    _mm512_storeu_si512(indices, at);
  }
  return num;
}

template <bool kAdd>
__attribute__((target("avx512f,avx512dq,popcnt"))) int64_t block_avx512(
    const Pass& pass, int64_t begin, int64_t end, float* values, int32_t* indices) {
  constexpr int kLanes = 16, kParts = kGroup / kLanes;
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude);
  const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(pass.limit));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const bool keep = pass.keep, clear = pass.clear;
  int64_t size = 0, i = begin, counted = pass.first_counted(begin);
  for (; i + kGroup <= end; i += kGroup) {
    float* signal = pass.signal + i;
    __m512 a[kParts];
    __mmask16 taken[kParts];
    unsigned any = 0;
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      _mm_prefetch(reinterpret_cast<const char*>(signal + kAhead + part * kLanes), _MM_HINT_T0);
      a[part] = _mm512_loadu_ps(signal + part * kLanes);
      if constexpr (kAdd) {
        _mm_prefetch(reinterpret_cast<const char*>(pass.grad + i + kAhead + part * kLanes), _MM_HINT_T0);
        a[part] = _mm512_add_ps(a[part], _mm512_loadu_ps(pass.grad + i + part * kLanes));
      }
      taken[part] = _mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_castps_si512(a[part]), magnitudes), limit);
      any |= taken[part];
    }
    if (kAdd && clear)
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) _mm512_storeu_ps(pass.grad + i + part * kLanes, _mm512_setzero_ps());
    if (i == counted) {
      float sums[kGroup];
      for (int part = 0; part < kParts; ++part) _mm512_storeu_ps(sums + part * kLanes, a[part]);
      count(pass.bins, sums, kGroup);
      counted += pass.every * kGroup;
    }
    if (!any) {
      if constexpr (kAdd)
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) _mm512_storeu_ps(signal + part * kLanes, a[part]);
      continue;
    }
    __builtin_prefetch(values + size + kGroup, 1);
    __builtin_prefetch(indices + size + kGroup, 1);
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const __mmask16 mask = taken[part];
      const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(i) + part * kLanes), lanes);
      size += store(mask, a[part], at, values + size, indices + size);
      if (keep) a[part] = _mm512_maskz_mov_ps(static_cast<__mmask16>(~mask), a[part]);
      _mm512_storeu_ps(signal + part * kLanes, a[part]);
    }
  }
  return size + block_scalar<kAdd>(pass, i, end, values + size, indices + size);
}

#endif  // SAGE_X86

// Processes the elements [begin, end) with the given instruction set; returns how many were taken. The lists need room
// for all of them and kOver more.
inline int64_t block(Isa isa, const Pass& pass, int64_t begin, int64_t end, float* values, int32_t* indices) {
  switch (isa) {
#if SAGE_X86
    case Isa::avx512:
      return pass.grad ? block_avx512<true>(pass, begin, end, values, indices)
                       : block_avx512<false>(pass, begin, end, values, indices);
    case Isa::avx2:
      return pass.grad ? block_avx2<true>(pass, begin, end, values, indices)
                       : block_avx2<false>(pass, begin, end, values, indices);
#endif
    default:
      return pass.grad ? block_scalar<true>(pass, begin, end, values, indices)
                       : block_scalar<false>(pass, begin, end, values, indices);
  }
}

}  // namespace sage::cpu
