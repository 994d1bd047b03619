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

enum class Order { ascending, mixed, outside };

// Whether the indices ascend (equal neighbours allowed), and are all inside of n.
inline Order order(const Sparse& x, int64_t n) {
  int32_t falls = 0, least = 0, most = 0;
  for (int64_t i = 0; i < x.size; ++i) {
    least = std::min(least, x.indices[i]);
    most = std::max(most, x.indices[i]);
  }
  for (int64_t i = 1; i < x.size; ++i) falls |= x.indices[i] < x.indices[i - 1];
  if (x.size > 0 && (least < 0 || most >= n)) return Order::outside;
  return falls ? Order::mixed : Order::ascending;
}

// A power of two is divided by as its inverse is multiplied by, to the bit, and sooner.
inline void divide(float* out, int64_t n, int64_t by) {
  if (by == 1) return;
  const float divisor = static_cast<float>(by), inverse = 1.0f / divisor;
  if ((by & (by - 1)) == 0)
    for (int64_t i = 0; i < n; ++i) out[i] *= inverse;
  else
    for (int64_t i = 0; i < n; ++i) out[i] /= divisor;
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

inline void fill(const std::vector<Sparse>& ranks, Tile& tile, float* out, bool zeroed) {
  if (!zeroed) std::memset(out + tile.begin, 0, (tile.end - tile.begin) * sizeof(float));
  int64_t touched = 0;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const Sparse& x = ranks[rank];
    int64_t i = tile.first[rank] = tile.next[rank];
    // Eight at a time while all eight are in the tile: the last one's index says so.
    for (; i + 8 <= x.size && x.indices[i + 7] < tile.end; i += 8) {
      __builtin_prefetch(x.indices + i + 128);
      __builtin_prefetch(x.values + i + 128);
#pragma GCC unroll 8
      for (int64_t lane = i; lane < i + 8; ++lane) out[x.indices[lane]] += x.values[lane];
    }
    for (; i < x.size && x.indices[i] < tile.end; ++i) out[x.indices[i]] += x.values[i];
    tile.next[rank] = i;
    touched += i - tile.first[rank];
  }
  if (touched * 8 < tile.end - tile.begin)
    divide_touched(ranks, tile, out);
  else
    divide(out + tile.begin, tile.end - tile.begin, static_cast<int64_t>(ranks.size()));
}

// out = Σ_w scatter(values_w, at_w) / W. All indices are inside of n. `ascending`: every rank's are.
// `zeroed`: the output is 0 everywhere already, and is written only where something is added.
inline void scatter_mean(const Team& team, const std::vector<Sparse>& ranks, bool ascending, bool zeroed, float* out,
                         int64_t n) {
  if (!ascending) {
    if (!zeroed) std::memset(out, 0, n * sizeof(float));
    for (const Sparse& x : ranks)
      for (int64_t i = 0; i < x.size; ++i) out[x.indices[i]] += x.values[i];
    return divide(out, n, static_cast<int64_t>(ranks.size()));
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
      fill(ranks, tile, out, zeroed);
    }
  });
}

// 0 at some places. All are inside of the vector.
inline void clear(float* out, const int32_t* at, int64_t num) {
  for (int64_t i = 0; i < num; ++i) out[at[i]] = 0;
}

}  // namespace sage::cpu
