// The mean of W sparse vectors, added in rank order: the order of every sum is fixed, so all ranks get the same bits.
//
// The output is computed tile by tile: zeroed, added to and divided while it is in cache. This requires ascending
// indices for each rank. Otherwise the vectors are added over the whole length, with bitwise identical results.
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

// Returns whether the indices ascend; equal neighbours are allowed.
SAGE_CLONES static bool ascends(const int32_t* at, int64_t num) {
  int32_t falls = 0;
  for (int64_t i = 1; i < num; ++i) falls |= at[i] < at[i - 1];
  return !falls;
}

// Returns whether all indices are in [0, n).
SAGE_CLONES static bool inside(const int32_t* at, int64_t num, int64_t n) {
  int32_t least = 0, most = -1;
  for (int64_t i = 0; i < num; ++i) {
    least = std::min(least, at[i]);
    most = std::max(most, at[i]);
  }
  return least >= 0 && most < n;
}

// Returns whether dividing each value by W before the addition gives the same bits as dividing the sum by W. This holds
// if W is a power of two and no value is near overflow or underflow.
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

// The elements of all ranks in one tile: [first[w], next[w]) of rank w.
struct Tile {
  int64_t begin, end;
  std::vector<int64_t> first, next;
};

// Divides each touched element of the output once, even if several ranks add to it.
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

// Adds eight elements at a time while all eight are in the tile, which the index of the last one shows.
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

// out = Σ_w scatter(values_w, at_w) / W. All indices are in [0, n).
// `zeroed`: the output is already 0 everywhere, and is written only where something is added.
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

// Sets the elements at these indices to 0. All indices are in the range of the vector.
inline void clear(float* out, const int32_t* at, int64_t num) {
  for (int64_t i = 0; i < num; ++i) out[at[i]] = 0;
}

}  // namespace sage::cpu
