// The mean of W sparse vectors, added rank by rank: every sum has one order, so every rank gets the same bits.
//
// The output is made block by block, zeroed, added to and divided while it is in cache. That needs each rank's
// indices to ascend; where they do not, the vectors are added over the whole length instead, to the same bits.
#pragma once

#include <array>
#include <vector>

#include "base.h"

namespace sage::cpu {

constexpr int64_t kTile = 16384;

struct Sparse {
  const float* values;
  const int32_t* indices;
  int64_t size;
};

// Whether indices ascend, equal neighbours allowed.
SAGE_CLONES static bool ascends(const int32_t* at, int64_t num) {
  int32_t falls = 0;
  for (int64_t i = 1; i < num; ++i) falls |= at[i] < at[i - 1];
  return !falls;
}

// Whether indices are all from 0 up to n - 1.
SAGE_CLONES static bool inside(const int32_t* at, int64_t num, int64_t n) {
  int32_t least = 0, most = -1;
  for (int64_t i = 0; i < num; ++i) {
    least = std::min(least, at[i]);
    most = std::max(most, at[i]);
  }
  return least >= 0 && most < n;
}

// Whether dividing each value by W first, and adding then, gives the same bits as adding and dividing then: with W a
// power of two, and nothing near overflow or underflow on the way, it does.
SAGE_CLONES static bool may_divide_first(const float* values, int64_t num, int64_t num_ranks) {
  const uint32_t small = magnitude(0x1p-90f), large = magnitude(0x1p90f);
  if ((num_ranks & (num_ranks - 1)) != 0 || num_ranks > 1024) return false;
  uint32_t odd = 0;
  for (int64_t i = 0; i < num; ++i) {
    const uint32_t bits = magnitude(values[i]);
    odd |= (bits != 0) & (bits - small > large - small);
  }
  return !odd;
}

SAGE_CLONES static void divide(float* out, int64_t n, float by) {
  for (int64_t i = 0; i < n; ++i) out[i] /= by;
}

// What the ranks put into one tile: of rank w, elements [first[w], next[w]).
struct Tile {
  int64_t begin, end;
  std::vector<int64_t> first, next;
};

// Each place divided once, however many ranks share it.
inline void divide_touched(const std::vector<Sparse>& ranks, const Tile& tile, float* out) {
  const float divisor = static_cast<float>(ranks.size());
  std::array<uint64_t, kTile / 64> seen{};
  for (size_t rank = 0; rank < ranks.size(); ++rank)
    for (int64_t i = tile.first[rank]; i < tile.next[rank]; ++i) {
      const int64_t place = ranks[rank].indices[i] - tile.begin;
      const uint64_t bit = uint64_t{1} << (place & 63);
      if (seen[place >> 6] & bit) continue;
      seen[place >> 6] |= bit;
      out[tile.begin + place] /= divisor;
    }
}

// Eight at a time while all eight are in the tile: the last one's index says so.
template <bool kScale>
int64_t add(const Sparse& x, int64_t i, int64_t end, float scale, float* out) {
  for (; i + 8 <= x.size && x.indices[i + 7] < end; i += 8) {
    __builtin_prefetch(x.indices + i + 128);
    __builtin_prefetch(x.values + i + 128);
#pragma GCC unroll 8
    for (int64_t lane = i; lane < i + 8; ++lane) out[x.indices[lane]] += kScale ? x.values[lane] * scale : x.values[lane];
  }
  for (; i < x.size && x.indices[i] < end; ++i) out[x.indices[i]] += kScale ? x.values[i] * scale : x.values[i];
  return i;
}

inline void fill(const std::vector<Sparse>& ranks, Tile& tile, float* out, bool zeroed, bool divide_first) {
  if (!zeroed) std::fill(out + tile.begin, out + tile.end, 0.0f);
  const float num_ranks = static_cast<float>(ranks.size());
  int64_t touched = 0;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const int64_t first = tile.first[rank] = tile.next[rank];
    tile.next[rank] = divide_first ? add<true>(ranks[rank], first, tile.end, 1 / num_ranks, out)
                                   : add<false>(ranks[rank], first, tile.end, 1, out);
    touched += tile.next[rank] - first;
  }
  if (divide_first || touched == 0) return;
  if (touched * 8 < tile.end - tile.begin)
    divide_touched(ranks, tile, out);
  else
    divide(out + tile.begin, tile.end - tile.begin, num_ranks);
}

// out = Σ_w scatter(values_w, at_w) / W. All indices are inside of n.
// `zeroed`: the output is 0 everywhere already, and is written only where something is added.
inline void scatter_mean(const Team& team, const std::vector<Sparse>& ranks, bool zeroed, float* out, int64_t n) {
  bool ascending = true, divide_first = true;
  for (const Sparse& x : ranks) {
    ascending = ascending && ascends(x.indices, x.size);
    divide_first = divide_first && may_divide_first(x.values, x.size, static_cast<int64_t>(ranks.size()));
  }
  if (!ascending) {
    if (!zeroed) std::fill_n(out, n, 0.0f);
    for (const Sparse& x : ranks)
      for (int64_t i = 0; i < x.size; ++i) out[x.indices[i]] += x.values[i];
    return divide(out, n, static_cast<float>(ranks.size()));
  }
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) {
    const int64_t first = part_begin(n, parts, part), last = part_begin(n, parts, part + 1);
    Tile tile{};
    for (const Sparse& x : ranks)
      tile.next.push_back(std::lower_bound(x.indices, x.indices + x.size, first) - x.indices);
    tile.first = tile.next;
    for (tile.begin = first; tile.begin < last; tile.begin = tile.end) {
      tile.end = std::min(tile.begin + kTile, last);
      fill(ranks, tile, out, zeroed, divide_first);
    }
  });
}

// 0 at some places. All are inside of the vector.
inline void clear(float* out, const int32_t* at, int64_t num) {
  for (int64_t i = 0; i < num; ++i) out[at[i]] = 0;
}

}  // namespace sage::cpu
