// Moments of each group of a vector, and exact order statistics, in the pass that adds the gradient.
//
// A sum is defined by the position of its elements in their group alone, so that it does not depend on threads or on
// the instruction set: in every chunk of 1,024 elements, 32 lanes add elements l, l + 32, ... in float64. The lanes are
// added by halving; the chunks' sums are added pairwise, at strides 1, 2, 4, ...
//
// The r-th largest magnitude is found as in topk.h: a sample gives a bracket, the pass sets aside the magnitudes from
// its lower end on, and the r-th is searched among these. If it is not there, three counting passes find it.
#pragma once

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

// Returns the moments of a whole chunk.
template <bool kAdd>
__attribute__((target("avx512f,avx512dq"))) Moments chunk_avx512(float* x, const float* grad) {
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
      if constexpr (kAdd) {
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
  if (isa == Isa::avx512 && n == kChunk) return grad ? chunk_avx512<true>(x, grad) : chunk_avx512<false>(x, grad);
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

// Adds the moments of chunks pairwise; they are overwritten.
inline Moments added(Moments* chunks, int64_t num) {
  for (int64_t stride = 1; stride < num; stride *= 2)
    for (int64_t i = 0; i + stride < num; i += 2 * stride) chunks[i].add(chunks[i + stride]);
  return num > 0 ? chunks[0] : Moments{};
}

// The magnitudes of a vector that are at or above a limit, by ascending index: one list for each part of the team.
struct Above {
  std::vector<Buffer<uint32_t>> lists;
  std::vector<int64_t> sizes;
  int64_t total = 0;

  // Empties the lists, and makes room for `likely` magnitudes.
  void begin(int64_t parts, int64_t likely) {
    if (static_cast<int64_t>(lists.size()) < parts) lists = std::vector<Buffer<uint32_t>>(parts);
    sizes.assign(parts, 0);
    total = 0;
    for (int64_t part = 0; part < parts; ++part) lists[part].reserve((likely + likely / 4) / parts + kChunk + kOver);
  }

  // Writes those in [low, high) to the front of `out`; returns their number.
  int64_t within(Isa isa, uint32_t low, uint32_t high, uint32_t* out) const {
    int64_t num = 0;
    for (size_t part = 0; part < sizes.size(); ++part)
      num += magnitudes_within(isa, lists[part].data(), sizes[part], low, high, out + num);
    return num;
  }

  void copy(uint32_t* out) const {
    for (size_t part = 0; part < sizes.size(); out += sizes[part++])
      if (sizes[part] > 0) std::memcpy(out, lists[part].data(), sizes[part] * sizeof *out);
  }
};

// Computes x += gradient and returns the moments of its n elements. Appends the magnitudes at or above a limit to the
// lists, if it is not kNothing.
inline Moments moments(Isa isa, const Team& team, float* x, const float* grad, int64_t n, uint32_t limit, Above& above) {
  const int64_t parts = static_cast<int64_t>(above.sizes.size()), num = (n + kChunk - 1) / kChunk;
  static thread_local Buffer<Moments> buffer;
  buffer.reserve(num);
  Moments* chunks = buffer.data();
  team.each(parts, [&, chunks](int64_t part) {
    Buffer<uint32_t>& list = above.lists[part];
    int64_t& size = above.sizes[part];
    for (int64_t chunk = num * part / parts; chunk < num * (part + 1) / parts; ++chunk) {
      const int64_t begin = chunk * kChunk, length = std::min(kChunk, n - begin);
      chunks[chunk] = chunk_moments(isa, x + begin, grad ? grad + begin : nullptr, length);
      if (limit == kNothing) continue;
      list.reserve(size + kChunk + kOver);
      size += magnitudes_within(isa, x + begin, length, limit, kNothing, list.data() + size);
    }
  });
  for (int64_t size : above.sizes) above.total += size;
  return added(chunks, num);
}

// Returns the r-th largest of the magnitudes in the lists, which are at or above `least`.
inline uint32_t ranked(Isa isa, const Above& above, uint32_t least, const Bracket& bracket, int64_t r) {
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(above.total + kOver);
  uint32_t *inside = buffer.data(), low = bracket.low, high = bracket.high;
  int64_t larger = above.within(isa, high, kNothing, inside), num = above.within(isa, low, high, inside);
  if (larger >= r || larger + num < r) {  // not in the bracket: all are searched
    low = least, high = kNothing, larger = 0;
    num = above.within(isa, low, high, inside);
  }
  const int width = static_cast<int>(std::bit_width(high - low));
  return low + rank(num, r - larger, width, [inside, low](int64_t i) { return inside[i] - low; }).bits;
}

// As `moments`; writes the magnitude that is the ranks[i]-th largest, from 1 to n, to found[i]; 0 if n is 0.
inline Moments ranked_moments(Isa isa, const Team& team, float* x, const float* grad, int64_t n, const int64_t* ranks,
                              int64_t num, uint32_t* found) {
  std::vector<Bracket> expected(num);
  uint32_t least = kNothing;
  int64_t likely = 0;
  if (num > 0 && n > kSmall) {
    Pass pass{x};
    pass.grad = const_cast<float*>(grad);  // it is only read
    brackets(isa, pass, n, ranks, num, expected.data());
    for (const Bracket& each : expected) {
      least = std::min(least, each.low);
      likely = std::max(likely, each.likely);
    }
    if (likely > n / 2) least = kNothing;  // counting is then faster
  }
  static thread_local Above above;
  above.begin(team.parts(n), least == kNothing ? 0 : likely);
  const Moments all = moments(isa, team, x, grad, n, least, above);
  for (int64_t i = 0; i < num; ++i)
    if (above.total >= ranks[i])
      found[i] = ranked(isa, above, least, expected[i], ranks[i]);
    else
      found[i] = n > 0 ? rank(n, ranks[i], 31, [x](int64_t j) { return magnitude(x[j]); }).bits : 0;
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
inline Excess excess(Isa isa, const Team& team, uint32_t* list, int64_t n, uint32_t limit) {
  const int64_t parts = team.parts(n);
  std::vector<int64_t> sizes(parts);
  team.each(parts, [&](int64_t part) {
    const int64_t begin = part_begin(n, parts, part), size = part_begin(n, parts, part + 1) - begin;
    sizes[part] = magnitudes_within(isa, list + begin, size, limit, kNothing, list + begin);
  });
  Excess found{sizes[0]};
  for (int64_t part = 1; part < parts; found.num += sizes[part++])
    std::memmove(list + found.num, list + part_begin(n, parts, part), sizes[part] * sizeof *list);
  found.least = least_of(list, found.num);
  float least;
  std::memcpy(&least, &found.least, sizeof least);
  const int64_t num = (found.num + kChunk - 1) / kChunk;
  std::vector<Moments> chunks(num);
  team.each(std::min(parts, std::max<int64_t>(1, num)), [&](int64_t part) {
    const int64_t shares = std::min(parts, std::max<int64_t>(1, num));
    float over[kChunk];
    for (int64_t chunk = num * part / shares; chunk < num * (part + 1) / shares; ++chunk) {
      const int64_t begin = chunk * kChunk, size = std::min(kChunk, found.num - begin);
      std::memcpy(over, list + begin, size * sizeof *over);
      for (int64_t i = 0; i < size; ++i) over[i] -= least;
      chunks[chunk] = chunk_moments(isa, over, nullptr, size);
    }
  });
  const Moments all = added(chunks.data(), num);
  found.sum = all.sum;
  found.square = all.square;
  return found;
}

}  // namespace sage::cpu
