// A list of elements cut in two by magnitude, and the magnitudes of a list that are below a limit.
#pragma once

#include "compress.h"

namespace sage::cpu {

// Of a list, what is at or above a limit to the front of another, which has room for no more than `room`; the
// rest to the front of `rest`, with room for all of them and kOver more. Returns how many went to the first.
inline int64_t part_scalar(const float* values, const int32_t* indices, int64_t n, uint32_t limit, int32_t base,
                           float* out_values, int32_t* out_indices, int64_t room, List& rest) {
  int64_t size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool taken = magnitude(values[i]) >= limit && size < room;
    float* value = taken ? out_values + size : rest.values + rest.size;
    int32_t* index = taken ? out_indices + size : rest.indices + rest.size;
    *value = values[i];
    *index = taken ? indices[i] + base : indices[i];
    size += taken;
    rest.size += !taken;
  }
  return size;
}

#if SAGE_X86

__attribute__((target("avx2,popcnt"))) inline int64_t part_avx2(
    const float* values, const int32_t* indices, int64_t n, uint32_t limit, int32_t base, float* out_values,
    int32_t* out_indices, int64_t room, List& rest) {
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude), based = _mm256_set1_epi32(base);
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(limit - 1));
  int64_t size = 0, i = 0;
  for (; i + 8 <= n && size + 8 <= room; i += 8) {
    const __m256 value = _mm256_loadu_ps(values + i);
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices + i));
    const __m256i taken = _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(value), magnitudes), below);
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(taken));
    const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[mask].data()));
    _mm256_storeu_ps(out_values + size, _mm256_permutevar8x32_ps(value, pick));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out_indices + size),
                        _mm256_permutevar8x32_epi32(_mm256_add_epi32(index, based), pick));
    size += __builtin_popcount(mask);
    if (mask == 255) continue;
    const __m256i drop = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[255 - mask].data()));
    _mm256_storeu_ps(rest.values + rest.size, _mm256_permutevar8x32_ps(value, drop));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest.indices + rest.size),
                        _mm256_permutevar8x32_epi32(index, drop));
    rest.size += 8 - __builtin_popcount(mask);
  }
  return size + part_scalar(values + i, indices + i, n - i, limit, base, out_values + size, out_indices + size,
                            room - size, rest);
}

// The magnitudes below a limit, to the front of `out`, which has room for all and kOver more.
__attribute__((target("avx2,popcnt"))) inline int64_t below_avx2(const float* values, int64_t n, uint32_t limit,
                                                                 uint32_t* out) {
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude), last = _mm256_set1_epi32(static_cast<int32_t>(limit - 1));
  int64_t size = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(values + i)), magnitudes);
    const int mask = 255 - _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bits, last)));
    const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[mask].data()));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + size), _mm256_permutevar8x32_epi32(bits, pick));
    size += __builtin_popcount(mask);
  }
  for (; i < n; ++i) {
    out[size] = magnitude(values[i]);
    size += out[size] < limit;
  }
  return size;
}

#endif  // SAGE_X86

inline int64_t partition(Isa isa, const List& list, uint32_t limit, int64_t base, float* out_values,
                         int32_t* out_indices, int64_t room, List& rest) {
#if SAGE_X86
  if (isa != Isa::scalar)
    return part_avx2(list.values, list.indices, list.size, limit, static_cast<int32_t>(base),
                     out_values, out_indices, room, rest);
#endif
  return part_scalar(list.values, list.indices, list.size, limit, static_cast<int32_t>(base),
                     out_values, out_indices, room, rest);
}

inline int64_t magnitudes_below(Isa isa, const List& list, uint32_t limit, uint32_t* out) {
#if SAGE_X86
  if (isa != Isa::scalar) return below_avx2(list.values, list.size, limit, out);
#endif
  int64_t size = 0;
  for (int64_t i = 0; i < list.size; ++i) {
    out[size] = magnitude(list.values[i]);
    size += out[size] < limit;
  }
  return size;
}

}  // namespace sage::cpu
