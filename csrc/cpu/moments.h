// Moments of each group of a vector, and exact order statistics, in the pass that adds the gradient.
//
// The order of the additions is that of sums.h.
//
// The r-th largest magnitude is found as in topk.h: a sample gives a bracket, the pass sets aside the magnitudes in it
// and counts those above it, and the r-th is searched among them.
#pragma once

#include <numeric>

#include "sums.h"
#include "topk.h"

namespace sage::cpu {

struct Moments {
  double sum = 0, absolute = 0, square = 0;  // of x, |x| and x²
  int64_t nonzero = 0;
  uint32_t most = 0;  // the largest magnitude

  // Adds those of later elements.
  void add(const Moments& other) {
    sum += other.sum;
    absolute += other.absolute;
    square += other.square;
    nonzero += other.nonzero;
    most = std::max(most, other.most);
  }
};

}  // namespace sage::cpu

#define SAGE_KERNEL "moments_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// Adds the moments of chunks pairwise; they are overwritten.
inline Moments added(Moments* chunks, int64_t num) {
  for (int64_t stride = 1; stride < num; stride *= 2)
    for (int64_t i = 0; i + stride < num; i += 2 * stride) chunks[i].add(chunks[i + stride]);
  return num > 0 ? chunks[0] : Moments{};
}

// The magnitudes of a vector in [low, high), by ascending index, and how many are larger: for each part of the team.
struct Band {
  uint32_t low, high;
  std::vector<Buffer<uint32_t>> lists;
  std::vector<int64_t> sizes, larger;

  // Empties the lists, and makes room for `likely` magnitudes.
  void begin(uint32_t from, uint32_t to, int64_t parts, int64_t likely) {
    low = from, high = to;
    if (static_cast<int64_t>(lists.size()) < parts) lists = std::vector<Buffer<uint32_t>>(parts);
    sizes.assign(parts, 0);
    larger.assign(parts, 0);
    for (int64_t part = 0; part < parts; ++part) lists[part].reserve((likely + likely / 4) / parts + kChunk + kOver);
  }

  int64_t size() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }
  int64_t num_larger() const { return std::accumulate(larger.begin(), larger.end(), int64_t{0}); }

  void copy(uint32_t* out) const {
    for (size_t part = 0; part < sizes.size(); out += sizes[part++])
      if (sizes[part] > 0) std::memcpy(out, lists[part].data(), sizes[part] * sizeof *out);
  }
};

#if SAGE_X86

// As magnitudes_within, for a band in which there are few elements; adds the number of those above it to `larger`.
__attribute__((target("avx512f,popcnt"))) inline int64_t band_avx512(const float* x, int64_t n, uint32_t low,
                                                                     uint32_t high, uint32_t* out, int64_t& larger) {
  constexpr int kParts = kGroup / 16;
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude), lows = _mm512_set1_epi32(static_cast<int32_t>(low));
  const __m512i width = _mm512_set1_epi32(static_cast<int32_t>(high - low)), one = _mm512_set1_epi32(1);
  const __m512i highs = _mm512_set1_epi32(static_cast<int32_t>(high));
  __m512i above = _mm512_setzero_si512();
  int64_t size = 0, i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    __m512i bits[kParts];
    __mmask16 inside[kParts];
    unsigned any = 0;
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      bits[part] = _mm512_and_si512(_mm512_loadu_si512(x + i + 16 * part), magnitudes);
      inside[part] = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(bits[part], lows), width);
      above = _mm512_mask_add_epi32(above, _mm512_cmpge_epu32_mask(bits[part], highs), above, one);
      any |= inside[part];
    }
    if (!any) continue;
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      _mm512_storeu_si512(out + size, _mm512_maskz_compress_epi32(inside[part], bits[part]));
      size += __builtin_popcount(inside[part]);
    }
  }
  uint32_t lanes[16];
  _mm512_storeu_si512(lanes, above);
  for (uint32_t lane : lanes) larger += lane;
  if (i < n) larger += num_at_least(x + i, n - i, high);
  return size + within_scalar(x + i, n - i, low, high, out + size);
}

#endif  // SAGE_X86

inline void take_band(Isa isa, const float* x, int64_t n, Band& band, int64_t part) {
  band.lists[part].reserve(band.sizes[part] + n + kOver);
  uint32_t* out = band.lists[part].data() + band.sizes[part];
  if (band.high == kNothing) {
    band.sizes[part] += magnitudes_within(isa, x, n, band.low, kNothing, out);
    return;
  }
#if SAGE_X86
  if (isa == Isa::avx512) {
    band.sizes[part] += band_avx512(x, n, band.low, band.high, out, band.larger[part]);
    return;
  }
#endif
  band.sizes[part] += magnitudes_within(isa, x, n, band.low, band.high, out);
  band.larger[part] += num_at_least(x, n, band.high);
}

// Computes x += gradient, returns the moments of its n elements, and fills `num` bands, which begin() has emptied for
// as many parts.
inline Moments moments(Isa isa, const Team& team, float* x, const float* grad, int64_t n, int64_t parts, Band* bands,
                       int64_t num) {
  const int64_t num_chunks = (n + kChunk - 1) / kChunk;
  static thread_local Buffer<Moments> buffer;
  buffer.reserve(num_chunks);
  Moments* chunks = buffer.data();
  team.each(parts, [&, chunks](int64_t part) {
    for (int64_t chunk = num_chunks * part / parts; chunk < num_chunks * (part + 1) / parts; ++chunk) {
      const int64_t begin = chunk * kChunk, size = std::min(kChunk, n - begin);
      chunks[chunk] = SAGE_CHOOSE(isa, moments_of, x + begin, grad ? grad + begin : nullptr, size);
      for (int64_t i = 0; i < num; ++i) take_band(isa, x + begin, size, bands[i], part);
    }
  });
  return added(chunks, num_chunks);
}

// As `moments`; writes the magnitude that is the ranks[i]-th largest, from 1 to n, to found[i]; 0 if n is 0.
//
// A sample gives a band around each rank, three times as wide as is needed for independent elements, since neighbours
// are correlated. If the rank is not in it, three counting passes find it.
inline Moments ranked_moments(Isa isa, const Team& team, float* x, const float* grad, int64_t n, const int64_t* ranks,
                              int64_t num, uint32_t* found) {
  const int64_t parts = team.parts(n);
  static thread_local std::vector<Band> bands;
  std::vector<Bracket> brackets_of(num);
  std::vector<int64_t> band_of(num);
  if (static_cast<int64_t>(bands.size()) < num) bands.resize(num);
  int64_t num_bands = 0;
  if (num > 0 && n > kSmall) {
    Pass pass{x};
    pass.grad = const_cast<float*>(grad);  // it is only read
    brackets(isa, pass, n, ranks, num, 3, brackets_of.data());
    for (int64_t i = 0; i < num; ++i) {
      const Bracket& each = brackets_of[i];
      int64_t band = 0;
      while (band < num_bands && (each.high <= bands[band].low || bands[band].high <= each.low)) ++band;
      band_of[i] = band;
      if (each.inside > n / 2) continue;  // counting is then faster
      if (band < num_bands) {  // ranks close to each other share a band
        bands[band].low = std::min(bands[band].low, each.low);
        bands[band].high = std::max(bands[band].high, each.high);
      } else {
        bands[num_bands++].begin(each.low, each.high, parts, each.inside);
      }
    }
  }
  const Moments all = moments(isa, team, x, grad, n, parts, bands.data(), num_bands);
  static thread_local Buffer<uint32_t> buffer;
  for (int64_t i = 0; i < num; ++i) {
    found[i] = 0;
    if (n == 0) continue;
    if (band_of[i] < num_bands) {
      const Band& band = bands[band_of[i]];
      const int64_t size = band.size(), r = ranks[i] - band.num_larger();
      if (r >= 1 && r <= size) {
        buffer.reserve(size);
        uint32_t* inside = buffer.data();
        band.copy(inside);
        const int width = static_cast<int>(std::bit_width(band.high - band.low));
        found[i] = band.low + rank(size, r, width, [&, inside](int64_t j) { return inside[j] - band.low; }).bits;
        continue;
      }
    }
    found[i] = rank(n, ranks[i], 31, [x](int64_t j) { return magnitude(x[j]); }).bits;
  }
  return all;
}

// What the magnitudes of a list exceed the smallest of them by.
struct Excess {
  int64_t num = 0;
  uint32_t least = kNothing;
  double sum = 0, square = 0;
};

SAGE_CLONES static uint32_t least_of(const uint32_t* magnitudes, int64_t n) {
  uint32_t least = kNothing;
  for (int64_t i = 0; i < n; ++i) least = std::min(least, magnitudes[i]);
  return least;
}

// Moves the magnitudes of a list that are at or above a limit to its front, and returns their excess.
inline Excess excess(Isa isa, const Team& team, float* list, int64_t n, uint32_t limit) {
  const int64_t parts = team.parts(n);
  std::vector<int64_t> sizes(parts);
  std::vector<uint32_t> least(parts, kNothing);
  auto* bits = reinterpret_cast<uint32_t*>(list);
  team.each(parts, [&](int64_t part) {
    const int64_t first = part_begin(n, parts, part), last = part_begin(n, parts, part + 1);
    int64_t size = 0;
    for (int64_t begin = first; begin < last; begin += kChunk) {
      uint32_t* out = bits + first + size;
      const int64_t num = magnitudes_within(isa, list + begin, std::min(kChunk, last - begin), limit, kNothing, out);
      least[part] = std::min(least[part], least_of(out, num));
      size += num;
    }
    sizes[part] = size;
  });
  Excess found{sizes[0], *std::min_element(least.begin(), least.end())};
  for (int64_t part = 1; part < parts; found.num += sizes[part++])
    std::memmove(bits + found.num, bits + part_begin(n, parts, part), sizes[part] * sizeof *bits);
  float smallest;
  std::memcpy(&smallest, &found.least, sizeof smallest);
  const int64_t num = (found.num + kChunk - 1) / kChunk, shares = std::min(parts, std::max<int64_t>(1, num));
  std::vector<Moments> chunks(num);
  team.each(shares, [&](int64_t part) {
    for (int64_t chunk = num * part / shares; chunk < num * (part + 1) / shares; ++chunk) {
      const int64_t begin = chunk * kChunk;
      chunks[chunk] = SAGE_CHOOSE(isa, excess_of, list + begin, std::min(kChunk, found.num - begin), smallest);
    }
  });
  const Moments all = added(chunks.data(), num);
  found.sum = all.sum;
  found.square = all.square;
  return found;
}

}  // namespace sage::cpu
