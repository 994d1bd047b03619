// AdaComp: the elements of each bin that come near its largest, and their codes.
//
// A vector is a sequence of layers, and a layer a sequence of bins of `length` elements, of which the last may be
// shorter. A bin is added up, its largest magnitude found and its elements compared while it is in cache.
#pragma once

#include <vector>

#include "select.h"

namespace sage::cpu {

struct Layer {
  int64_t begin, end, length;
  int64_t first_bin;  // number of the bins in the layers before it

  int64_t bins() const { return (end - begin + length - 1) / length; }
};

inline std::vector<Layer> layers_of(const std::vector<int64_t>& stops, const std::vector<int64_t>& lengths) {
  std::vector<Layer> layers;
  int64_t begin = 0, bin = 0;
  for (size_t l = 0; l < stops.size(); ++l) {
    layers.push_back({begin, stops[l], lengths[l], bin});
    begin = stops[l];
    bin += layers.back().bins();
  }
  return layers;
}

// The operations on each element: a = signal + grad, H = a + weight · grad. Without `adds`, a is the signal and grad
// is the same memory.
struct Near {
  float* signal;
  const float* grad;
  float weight;
  bool adds;
  bool keep = false;   // whether a minus the value taken is left in the signal, 0 if that is not finite
  bool heavy = false;  // whether H is taken instead of a
};

constexpr uint32_t kInfinity = 0x7f800000u;

inline float finite(float x) { return magnitude(x) < kInfinity ? x : 0.0f; }

// Computes a for n elements and returns its largest magnitude.
inline uint32_t add_scalar(const Near& near, int64_t begin, int64_t end, uint32_t most) {
  for (int64_t i = begin; i < end; ++i) {
    if (near.adds) near.signal[i] += near.grad[i];
    most = std::max(most, magnitude(near.signal[i]));
  }
  return most;
}

// Takes the elements other than 0 whose |H| is at or above a limit; returns their number.
inline int64_t near_scalar(const Near& near, uint32_t limit, int64_t begin, int64_t end, float* values,
                           int32_t* indices) {
  int64_t size = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float a = near.signal[i], weighted = near.weight * near.grad[i], heavy = a + weighted;
    const float value = near.heavy ? heavy : a;
    values[size] = value;
    indices[size] = static_cast<int32_t>(i);
    const bool taken = magnitude(heavy) >= limit && magnitude(a) > 0;
    size += taken;
    if (taken && near.keep) near.signal[i] = finite(a - value);
  }
  return size;
}

#if SAGE_X86

__attribute__((target("avx2"))) inline uint32_t largest_of(__m256i most) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

__attribute__((target("avx2"))) inline uint32_t add_avx2(const Near& near, int64_t begin, int64_t end) {
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude);
  __m256i most = _mm256_setzero_si256();  // below 2^31, so that signed maxima do
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    __m256 a = _mm256_loadu_ps(near.signal + i);
    if (near.adds) {
      a = _mm256_add_ps(a, _mm256_loadu_ps(near.grad + i));
      _mm256_storeu_ps(near.signal + i, a);
    }
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(a), magnitudes));
  }
  return add_scalar(near, i, end, largest_of(most));
}

__attribute__((target("avx2,popcnt"))) inline int64_t near_avx2(const Near& near, uint32_t limit, int64_t begin,
                                                                int64_t end, float* values, int32_t* indices) {
  const __m256i magnitudes = _mm256_set1_epi32(kMagnitude), lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(limit - 1));
  const __m256i infinity = _mm256_set1_epi32(kInfinity);
  const __m256 weight = _mm256_set1_ps(near.weight);
  int64_t size = 0, i = begin;
  for (; i + 8 <= end; i += 8) {
    const __m256 a = _mm256_loadu_ps(near.signal + i);
    const __m256 heavy = _mm256_add_ps(a, _mm256_mul_ps(weight, _mm256_loadu_ps(near.grad + i)));
    const __m256i large =
        _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(heavy), magnitudes), below);
    const __m256i some =
        _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(a), magnitudes), _mm256_setzero_si256());
    const __m256i taken = _mm256_and_si256(large, some);
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(taken));
    if (mask == 0) continue;
    const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPick[mask].data()));
    const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int32_t>(i)), lanes);
    const __m256 value = near.heavy ? heavy : a;
    _mm256_storeu_ps(values + size, _mm256_permutevar8x32_ps(value, pick));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + size), _mm256_permutevar8x32_epi32(at, pick));
    size += __builtin_popcount(mask);
    if (near.keep) {
      const __m256i left = _mm256_castps_si256(_mm256_sub_ps(a, value));
      const __m256i finite = _mm256_cmpgt_epi32(infinity, _mm256_and_si256(left, magnitudes));
      const __m256 rest = _mm256_castsi256_ps(_mm256_and_si256(left, finite));
      _mm256_storeu_ps(near.signal + i, _mm256_blendv_ps(a, rest, _mm256_castsi256_ps(taken)));
    }
  }
  return size + near_scalar(near, limit, i, end, values + size, indices + size);
}

__attribute__((target("avx512f,avx2"))) inline uint32_t add_avx512(const Near& near, int64_t begin, int64_t end) {
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude);
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = begin; i < end; i += 16) {
    const auto lanes = static_cast<__mmask16>(end - i >= 16 ? 0xffff : (1 << (end - i)) - 1);
    __m512 a = _mm512_maskz_loadu_ps(lanes, near.signal + i);
    if (near.adds) {
      a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(lanes, near.grad + i));
      if (lanes == 0xffff)
        _mm512_storeu_ps(near.signal + i, a);
      else
        _mm512_mask_storeu_ps(near.signal + i, lanes, a);
    }
    most = _mm512_maskz_max_epu32(0xffff, most, _mm512_and_si512(_mm512_castps_si512(a), magnitudes));
  }
  return largest_of(_mm256_max_epi32(_mm512_maskz_extracti64x4_epi64(0xf, most, 0),
                                     _mm512_maskz_extracti64x4_epi64(0xf, most, 1)));
}

// kOften: most sixteens have an element that is taken, so that a branch would often be mispredicted.
template <bool kOften>
__attribute__((target("avx512f,popcnt"))) inline int64_t near_avx512(const Near& near, uint32_t limit, int64_t begin,
                                                                     int64_t end, float* values, int32_t* indices) {
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude), limits = _mm512_set1_epi32(static_cast<int32_t>(limit));
  const __m512i infinity = _mm512_set1_epi32(kInfinity);
  const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 weight = _mm512_set1_ps(near.weight);
  int64_t size = 0;
  for (int64_t i = begin; i < end; i += 16) {
    const auto lanes = static_cast<__mmask16>(end - i >= 16 ? 0xffff : (1 << (end - i)) - 1);
    const __m512 a = _mm512_maskz_loadu_ps(lanes, near.signal + i);
    const __m512 heavy = _mm512_add_ps(a, _mm512_mul_ps(weight, _mm512_maskz_loadu_ps(lanes, near.grad + i)));
    // Lanes behind the end hold 0, which is never taken.
    const __mmask16 some = _mm512_test_epi32_mask(_mm512_castps_si512(a), magnitudes);
    const __mmask16 taken =
        _mm512_mask_cmpge_epu32_mask(some, _mm512_and_si512(_mm512_castps_si512(heavy), magnitudes), limits);
    if (!kOften && taken == 0) continue;
    const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(i)), places);
    const __m512 value = near.heavy ? heavy : a;
    size += store(taken, value, at, values + size, indices + size);
    if (near.keep) {
      const __m512i left = _mm512_castps_si512(_mm512_sub_ps(a, value));
      const __mmask16 finite = _mm512_cmplt_epu32_mask(_mm512_and_si512(left, magnitudes), infinity);
      _mm512_mask_storeu_epi32(near.signal + i, taken, _mm512_maskz_mov_epi32(finite, left));
    }
  }
  return size;
}

#endif  // SAGE_X86

inline uint32_t add(Isa isa, const Near& near, int64_t begin, int64_t end) {
#if SAGE_X86
  if (isa == Isa::avx512) return add_avx512(near, begin, end);
  if (isa == Isa::avx2) return add_avx2(near, begin, end);
#endif
  return add_scalar(near, begin, end, 0);
}

inline int64_t take_near(Isa isa, const Near& near, uint32_t limit, bool often, int64_t begin, int64_t end,
                         float* values, int32_t* indices) {
#if SAGE_X86
  if (isa == Isa::avx512)
    return often ? near_avx512<true>(near, limit, begin, end, values, indices)
                 : near_avx512<false>(near, limit, begin, end, values, indices);
  if (isa == Isa::avx2) return near_avx2(near, limit, begin, end, values, indices);
#endif
  return near_scalar(near, limit, begin, end, values, indices);
}

// Elements that are added up before they are compared: a processor waits if it reads what it has just written in parts.
constexpr int64_t kAdded = 2048;
constexpr int64_t kNarrow = 128;  // elements of a bin of which most sixteens have one that is taken

// Takes from the bins [first, last) of a vector; writes each bin's largest magnitude and how many were taken of it.
inline void take_near(Isa isa, const Near& near, const std::vector<Layer>& layers, int64_t first, int64_t last,
                      float* largest, int32_t* counts, List& list) {
  for (const Layer& layer : layers) {
    const int64_t stop = std::min(layer.first_bin + layer.bins(), last), some = std::max<int64_t>(1, kAdded / layer.length);
    for (int64_t from = std::max(layer.first_bin, first); from < stop; from += some) {
      const int64_t to = std::min(from + some, stop);
      const auto start_of = [&](int64_t bin) {
        return std::min(layer.begin + (bin - layer.first_bin) * layer.length, layer.end);
      };
      for (int64_t bin = from; bin < to; ++bin) {
        const uint32_t most = add(isa, near, start_of(bin), start_of(bin + 1));
        std::memcpy(largest + bin, &most, sizeof most);
      }
      for (int64_t bin = from; bin < to; ++bin) {
        const int64_t end = start_of(bin + 1), before = list.size;
        uint32_t limit;
        std::memcpy(&limit, largest + bin, sizeof limit);
        if (limit > kInfinity) limit = 0;  // a comparison with NaN takes the element
        for (int64_t at = start_of(bin); at < end; at += kBlock) {
          const int64_t until = std::min(at + kBlock, end);
          list.reserve(list.size + until - at + kOver);
          list.size += take_near(isa, near, limit, layer.length <= kNarrow, at, until, list.values + list.size,
                                 list.indices + list.size);
        }
        counts[bin] = static_cast<int32_t>(list.size - before);
      }
    }
  }
}

// Returns the first bin that begins at or after an element.
inline int64_t bin_from(const std::vector<Layer>& layers, int64_t element) {
  for (const Layer& layer : layers)
    if (element < layer.end)
      return layer.first_bin + std::max<int64_t>(0, element - layer.begin + layer.length - 1) / layer.length;
  return layers.empty() ? 0 : layers.back().first_bin + layers.back().bins();
}

// Returns the first element of a bin.
inline int64_t begin_of(const std::vector<Layer>& layers, int64_t bin) {
  for (const Layer& layer : layers)
    if (bin < layer.first_bin + layer.bins()) return layer.begin + (bin - layer.first_bin) * layer.length;
  return layers.back().end;
}

// Takes from all bins of a vector of n elements with a team; a bin is the work of one thread. The list must be empty.
inline void take_near(Isa isa, const Team& team, const Near& near, const std::vector<Layer>& layers, int64_t n,
                      float* largest, int32_t* counts, List& list) {
  const int64_t parts = team.parts(n);
  std::vector<int64_t> bins;
  for (int64_t part = 0; part <= parts; ++part) bins.push_back(bin_from(layers, part == parts ? n : n / parts * part));
  if (parts == 1) {
    // The first bins predict the memory that the rest needs, so that the list is rarely reallocated.
    const int64_t few = std::min(bin_from(layers, std::min<int64_t>(n, 65536)), bins.back());
    const double seen = static_cast<double>(few < bins.back() ? begin_of(layers, few) : n);
    take_near(isa, near, layers, 0, few, largest, counts, list);
    if (few == bins.back()) return;
    list.reserve(static_cast<int64_t>(static_cast<double>(list.size) * 1.1 * static_cast<double>(n) / seen) + 2 * kBlock);
    return take_near(isa, near, layers, few, bins.back(), largest, counts, list);
  }
  std::vector<Kept>& kept = workspace(parts);
  team.each(parts, [&](int64_t part) {
    take_near(isa, near, layers, bins[part], bins[part + 1], largest, counts, kept[part]);
  });
  join(team, kept, parts, list);
}

}  // namespace sage::cpu
