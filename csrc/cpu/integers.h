// Quantisation to integers of a table at random, sums of such integers, and the values that sums stand for. An element's
// place is its value in steps plus half of the largest integer g, clipped to 0 … g; it becomes one of the two integers of
// the table beside its place, without bias.
#pragma once

#include <vector>

#include "levels.h"

namespace sage::cpu {

// For the integer below a place, up to most - 1: the number of the level below it, this level, and the distance to the
// next one. And the integer of each level's number.
struct IntegerTable {
  static constexpr int kInRegister = 16;  // numbers that are looked up in a register

  int most = 1, num = 0, bits = 1;
  // Whether the random number u < d / distance is u·distance < d, d being the place minus the level below it. u has 17
  // bits. A place is a multiple of e = 2^(⌊log2 half⌋ - 24), half being most / 2, since it is a sum that was rounded, and so
  // is d. With a distance of at most half, e / distance is above 2^-25: a quotient above u does not round to u. And u·distance
  // has at most 24 bits. With a power of two both are exact.
  bool multiplies = true;
  alignas(64) uint32_t number[256] = {}, level[256] = {};
  alignas(64) float low[256] = {}, distance[256] = {};

  explicit IntegerTable(const std::vector<int64_t>& levels)
      : most(static_cast<int>(levels.back())), num(static_cast<int>(levels.size())) {
    while ((num - 1) >> bits) ++bits;
    for (int l = 0; l < num; ++l) level[l] = static_cast<uint32_t>(levels[l]);
    for (int place = 0, l = 0; place < most; ++place) {
      while (levels[l + 1] <= place) ++l;
      const int64_t apart = levels[l + 1] - levels[l];
      number[place] = static_cast<uint32_t>(l);
      low[place] = static_cast<float>(levels[l]);
      distance[place] = static_cast<float>(apart);
      multiplies = multiplies && ((apart & (apart - 1)) == 0 || 2 * apart <= most);
    }
  }
};

// A row for each share of ⌈numel/shares⌉ elements.
struct IntegerRows {
  const IntegerTable& table;
  float* signal;
  int64_t numel;
  const int64_t* bounds;  // of the parts
  int64_t num_parts;
  const float* step;  // of each part
  uint64_t key;       // of the random bits
  const Positions* positions;
  bool packed;  // whether numbers of levels are written, packed, or integers, a byte each
  bool keep;    // whether the error is left in the signal
  int64_t length;
  uint8_t* bytes;
  int64_t num_bytes;  // of a row

  int bits() const { return packed ? table.bits : 8; }
};

// Sums of n numbers of `bits` bits: the low 8 bits of all, then the next 8, and so on, each plane in whole bytes.
struct Planes {
  int64_t n;
  int bits;

  int num() const { return (bits + 7) / 8; }
  int width(int plane) const { return std::min(8, bits - 8 * plane); }
  int64_t begin(int plane) const { return plane * packed_bytes(n, 8); }
  int64_t num_bytes() const { return begin(num() - 1) + packed_bytes(n, width(num() - 1)); }
};

// The sums of rows of packed numbers of levels.
struct IntegerSums {
  const IntegerTable& table;
  const uint8_t* bytes;
  int64_t num_bytes, num_rows;  // of a row, and how many rows there are
  Planes planes;
  uint8_t* out;
};

// The values of sums of `num` integers of at most `most`. Row s has the sums of the elements from s·planes.n on.
struct IntegerMeans {
  float* out;
  int64_t numel;
  const uint8_t* bytes;
  Planes planes;
  const int64_t* bounds;
  int64_t num_parts;
  const float* step;
  int64_t most, num;
};

}  // namespace sage::cpu

#define SAGE_KERNEL "integers_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// Calls work(begin, end) for runs of whole tiles of n elements.
inline void each_run(const Team& team, int64_t n, const std::function<void(int64_t, int64_t)>& work) {
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) {
    work(part_begin(n, parts, part) / kRandomTile * kRandomTile,
         part + 1 == parts ? n : part_begin(n, parts, part + 1) / kRandomTile * kRandomTile);
  });
}

inline int64_t in_share(int64_t numel, int64_t length, int64_t share) {
  return std::max<int64_t>(0, std::min(length, numel - share * length));
}

inline void quantise_integers(Isa isa, const Team& team, const IntegerRows& x, int64_t shares) {
  for (int64_t share = 0; share < shares; ++share) {
    const int64_t n = in_share(x.numel, x.length, share), done = packed_bytes(n, x.bits());
    std::fill_n(x.bytes + share * x.num_bytes + done, x.num_bytes - done, uint8_t{0});
    each_run(team, n, [&](int64_t begin, int64_t end) { SAGE_CHOOSE(isa, quantise_share, x, share, begin, end); });
  }
}

inline void sum_integers(Isa isa, const Team& team, const IntegerSums& x) {
  each_run(team, x.planes.n, [&](int64_t begin, int64_t end) { SAGE_CHOOSE(isa, sum_rows, x, begin, end); });
}

inline void average_integers(Isa isa, const Team& team, const IntegerMeans& x, int64_t shares) {
  for (int64_t share = 0; share < shares; ++share)
    each_run(team, in_share(x.numel, x.planes.n, share),
             [&](int64_t begin, int64_t end) { SAGE_CHOOSE(isa, average_share, x, share, begin, end); });
}

}  // namespace sage::cpu
