// Partitions a list of elements by magnitude, and extracts the magnitudes of a list between two limits.
#pragma once

#include "compress.h"

namespace sage::cpu {

// Contiguous elements of a list.
struct Span {
  const float* values;
  const int32_t* indices;
  int64_t size;
};

// Moves the elements of a list that are at or above a limit to the front of an output list, which has room for `room`
// elements and may be the same list. Moves the other elements to `rest`, which needs room for all of them and kOver
// more. Returns the number of elements in the output list.
inline int64_t part_scalar(const Span& list, uint32_t limit, int32_t base, float* out_values, int32_t* out_indices,
                           int64_t room, List& rest) {
  int64_t size = 0;
  for (int64_t i = 0; i < list.size; ++i) {
    const bool taken = magnitude(list.values[i]) >= limit && size < room;
    float* value = taken ? out_values + size : rest.values + rest.size;
    int32_t* index = taken ? out_indices + size : rest.indices + rest.size;
    *value = list.values[i];
    *index = taken ? list.indices[i] + base : list.indices[i];
    size += taken;
    rest.size += !taken;
  }
  return size;
}

// Of a list of magnitudes, or of floats.
template <class T>
int64_t within_scalar(const T* values, int64_t n, uint32_t low, uint32_t high, uint32_t* out) {
  int64_t size = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    out[size] = bits & kMagnitude;
    size += out[size] - low < high - low;
  }
  return size;
}

#if SAGE_X86

inline Span behind(const Span& list, int64_t i) { return {list.values + i, list.indices + i, list.size - i}; }

__attribute__((target("avx2,popcnt"))) inline int64_t part_avx2(const Span& list, uint32_t limit, int32_t base,
                                                                float* out_values, int32_t* out_indices,
                                                                int64_t room, List& rest) {
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude), based = _mm256_set1_epi32(base);
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(limit - 1));
  int64_t size = 0, i = 0;
  for (; i + 8 <= list.size && size + 8 <= room; i += 8) {
    const __m256 value = _mm256_loadu_ps(list.values + i);
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(list.indices + i));
    const __m256i taken = _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(value), magnitudes), below);
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(taken));
    const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[mask].data()));
    const __m256i drop = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[255 - mask].data()));
    _mm256_storeu_ps(out_values + size, _mm256_permutevar8x32_ps(value, pick));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out_indices + size),
                        _mm256_permutevar8x32_epi32(_mm256_add_epi32(index, based), pick));
    _mm256_storeu_ps(rest.values + rest.size, _mm256_permutevar8x32_ps(value, drop));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest.indices + rest.size),
                        _mm256_permutevar8x32_epi32(index, drop));
    size += __builtin_popcount(mask);
    rest.size += 8 - __builtin_popcount(mask);
  }
  return size + part_scalar(behind(list, i), limit, base, out_values + size, out_indices + size, room - size, rest);
}

__attribute__((target("avx512f,popcnt"))) inline int64_t part_avx512(const Span& list, uint32_t limit, int32_t base,
                                                                     float* out_values, int32_t* out_indices,
                                                                     int64_t room, List& rest) {
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude), based = _mm512_set1_epi32(base);
  const __m512i limits = _mm512_set1_epi32(static_cast<int32_t>(limit));
  int64_t size = 0, i = 0;
  for (; i + 16 <= list.size && size + 16 <= room; i += 16) {
    const __m512 value = _mm512_loadu_ps(list.values + i);
    const __m512i index = _mm512_loadu_si512(list.indices + i);
    const __mmask16 taken = _mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_castps_si512(value), magnitudes), limits);
    size += store(taken, value, _mm512_add_epi32(index, based), out_values + size, out_indices + size);
    rest.size += store(static_cast<__mmask16>(~taken), value, index, rest.values + rest.size, rest.indices + rest.size);
  }
  return size + part_scalar(behind(list, i), limit, base, out_values + size, out_indices + size, room - size, rest);
}

template <class T>
__attribute__((target("avx2,popcnt"))) int64_t within_avx2(const T* values, int64_t n, uint32_t low, uint32_t high,
                                                           uint32_t* out) {
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude);
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(low - 1));
  const __m256i last = _mm256_set1_epi32(static_cast<int32_t>(high - 1));
  int64_t size = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i bits = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i)), magnitudes);
    const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(bits, last), _mm256_cmpgt_epi32(bits, below));
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(inside));
    const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[mask].data()));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + size), _mm256_permutevar8x32_epi32(bits, pick));
    size += __builtin_popcount(mask);
  }
  return size + within_scalar(values + i, n - i, low, high, out + size);
}

template <class T>
__attribute__((target("avx512f,popcnt"))) int64_t within_avx512(const T* values, int64_t n, uint32_t low,
                                                                uint32_t high, uint32_t* out) {
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude), lows = _mm512_set1_epi32(static_cast<int32_t>(low));
  const __m512i width = _mm512_set1_epi32(static_cast<int32_t>(high - low));
  int64_t size = 0, i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(values + i), magnitudes);
    const __mmask16 mask = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(bits, lows), width);
    _mm512_storeu_si512(out + size, _mm512_maskz_compress_epi32(mask, bits));
    size += __builtin_popcount(mask);
  }
  return size + within_scalar(values + i, n - i, low, high, out + size);
}

#endif  // SAGE_X86

inline int64_t partition(Isa isa, const Span& list, uint32_t limit, int64_t base, float* out_values,
                         int32_t* out_indices, int64_t room, List& rest) {
  const auto added = static_cast<int32_t>(base);
#if SAGE_X86
  if (isa == Isa::avx512) return part_avx512(list, limit, added, out_values, out_indices, room, rest);
  if (isa == Isa::avx2) return part_avx2(list, limit, added, out_values, out_indices, room, rest);
#endif
  return part_scalar(list, limit, added, out_values, out_indices, room, rest);
}

// Writes the magnitudes in [low, high) to the front of `out` and returns their number. `high` is at most kNothing;
// `out` needs room for all elements and kOver more.
template <class T>
int64_t magnitudes_within(Isa isa, const T* values, int64_t n, uint32_t low, uint32_t high, uint32_t* out) {
#if SAGE_X86
  if (isa == Isa::avx512) return within_avx512(values, n, low, high, out);
  if (isa == Isa::avx2) return within_avx2(values, n, low, high, out);
#endif
  return within_scalar(values, n, low, high, out);
}

}  // namespace sage::cpu
