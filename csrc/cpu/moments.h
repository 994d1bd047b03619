// Moments of each group of a vector, and exact order statistics, in the pass that adds the gradient.
//
// A sum is defined by the position of its elements in their group alone, so that it does not depend on threads or on
// the instruction set: in every chunk of 1,024 elements, 32 lanes add elements l, l + 32, ... in float64. The lanes are
// added by halving; the chunks' sums are added pairwise, at strides 1, 2, 4, ...
//
// The r-th largest magnitude is found as in topk.h: a sample gives a bracket, the pass sets aside the magnitudes in it
// and counts those above it, and the r-th is searched among them.
#pragma once

#include <numeric>

#include "topk.h"

namespace sage::cpu {

constexpr int64_t kChunk = 1024, kRow = 32;

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

// The sums in the lanes of a chunk.
struct Lanes {
  double sum[kRow] = {}, absolute[kRow] = {}, square[kRow] = {};
  int64_t nonzero = 0;
  uint32_t most = 0;

  Moments added() {
    for (int64_t half = kRow / 2; half > 0; half /= 2)
      for (int64_t lane = 0; lane < half; ++lane) {
        sum[lane] += sum[lane + half];
        absolute[lane] += absolute[lane + half];
        square[lane] += square[lane + half];
      }
    return {sum[0], absolute[0], square[0], nonzero, most};
  }
};

// Adds the gradient, if there is one, to `rows` rows of 32 elements, and their moments to the lanes.
SAGE_CLONES static void add_rows(float* x, const float* grad, int64_t rows, Lanes& lanes) {
  for (int64_t row = 0; row < rows; ++row, x += kRow) {
    if (grad)
      for (int lane = 0; lane < kRow; ++lane) x[lane] += grad[row * kRow + lane];
    uint32_t nonzero = 0, most = 0;
    for (int lane = 0; lane < kRow; ++lane) {
      const uint32_t bits = magnitude(x[lane]);
      nonzero += bits != 0;
      most = std::max(most, bits);
    }
    lanes.nonzero += nonzero;
    lanes.most = std::max(lanes.most, most);
    for (int lane = 0; lane < kRow; ++lane) {
      const double wide = x[lane];
      lanes.sum[lane] += wide;
      lanes.absolute[lane] += std::fabs(wide);
      lanes.square[lane] += wide * wide;  // the product is exact
    }
  }
}

#if SAGE_X86

// The lanes l, l + 8, l + 16 and l + 24 added by halving, then the eight that are left.
__attribute__((target("avx512f"))) inline double halved(const __m512d* part) {
  double lanes[8];
  _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_add_pd(part[0], part[2]), _mm512_add_pd(part[1], part[3])));
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

enum class Form { plain, added, over };  // of an element: x, x + gradient (written to x), or x − least

// Returns the moments of a whole chunk.
template <Form kForm>
__attribute__((target("avx512f,avx512dq"))) Moments chunk_avx512(float* x, const float* grad, float least) {
  constexpr int kParts = kRow / 8;
  __m512d sum[kParts] = {}, absolute[kParts] = {}, square[kParts] = {};
  const __m512i magnitudes = _mm512_set1_epi32(kMagnitude), one = _mm512_set1_epi32(1);
  __m512i most = _mm512_setzero_si512(), nonzero = _mm512_setzero_si512();
  for (int64_t row = 0; row < kChunk; row += kRow) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* at = x + row + 16 * half;
      _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
      __m512 a = _mm512_loadu_ps(at);
      if constexpr (kForm == Form::over) a = _mm512_sub_ps(a, _mm512_set1_ps(least));
      if constexpr (kForm == Form::added) {
        const float* added = grad + row + 16 * half;
        _mm_prefetch(reinterpret_cast<const char*>(added + kAhead), _MM_HINT_T0);
        a = _mm512_add_ps(a, _mm512_loadu_ps(added));
        _mm512_storeu_ps(at, a);
      }
      const __m512i bits = _mm512_and_si512(_mm512_castps_si512(a), magnitudes);
      most = _mm512_maskz_max_epu32(0xffff, most, bits);
      nonzero = _mm512_mask_add_epi32(nonzero, _mm512_test_epi32_mask(bits, bits), nonzero, one);
#pragma GCC unroll 2
      for (int quarter = 0; quarter < 2; ++quarter) {
        const int part = 2 * half + quarter;
        const __m256 narrow = _mm512_maskz_extractf32x8_ps(0xff, a, quarter);
        const __m512d wide = _mm512_maskz_cvtps_pd(0xff, narrow);
        sum[part] = _mm512_add_pd(sum[part], wide);
        absolute[part] = _mm512_add_pd(absolute[part], _mm512_abs_pd(wide));
        square[part] = _mm512_fmadd_pd(wide, wide, square[part]);  // the product is exact
      }
    }
  }
  Moments found{halved(sum), halved(absolute), halved(square)};
  uint32_t lanes[2][16];
  _mm512_storeu_si512(lanes[0], nonzero);
  _mm512_storeu_si512(lanes[1], most);
  for (int lane = 0; lane < 16; ++lane) {
    found.nonzero += lanes[0][lane];
    found.most = std::max(found.most, lanes[1][lane]);
  }
  return found;
}

#endif  // SAGE_X86

// Returns the moments of a chunk, after the gradient has been added to it.
inline Moments chunk_moments(Isa isa, float* x, const float* grad, int64_t n) {
#if SAGE_X86
  if (isa == Isa::avx512 && n == kChunk)
    return grad ? chunk_avx512<Form::added>(x, grad, 0) : chunk_avx512<Form::plain>(x, grad, 0);
#endif
  Lanes lanes;
  const int64_t rows = n / kRow, whole = rows * kRow;
  add_rows(x, grad, rows, lanes);
  for (int64_t lane = 0; lane < n - whole; ++lane) {
    if (grad) x[whole + lane] += grad[whole + lane];
    const double wide = x[whole + lane];
    const uint32_t bits = magnitude(x[whole + lane]);
    lanes.sum[lane] += wide;
    lanes.absolute[lane] += std::fabs(wide);
    lanes.square[lane] += wide * wide;
    lanes.nonzero += bits != 0;
    lanes.most = std::max(lanes.most, bits);
  }
  return lanes.added();
}

// Returns the moments of what the elements of a chunk exceed a number by.
inline Moments chunk_over(Isa isa, const float* x, int64_t n, float least) {
#if SAGE_X86
  if (isa == Isa::avx512 && n == kChunk) return chunk_avx512<Form::over>(const_cast<float*>(x), nullptr, least);
#endif
  float over[kChunk];
  for (int64_t i = 0; i < n; ++i) over[i] = x[i] - least;
  return chunk_moments(isa, over, nullptr, n);
}

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
      chunks[chunk] = chunk_moments(isa, x + begin, grad ? grad + begin : nullptr, size);
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
      chunks[chunk] = chunk_over(isa, list + begin, std::min(kChunk, found.num - begin), smallest);
    }
  });
  const Moments all = added(chunks.data(), num);
  found.sum = all.sum;
  found.square = all.square;
  return found;
}

}  // namespace sage::cpu
