// Random elements of the groups of a vector: every set of k of n elements is equally likely, and depends on a key and
// the group's number alone. Draw j of a group is one 32-bit word of Philox, scaled to [0, n); words that would favour
// some elements are skipped (Lemire, "Fast random integer generation in an interval", 2019).
//
// Draw 64·t + j is word j / 16 of the counter 2^32·group + 16·t + j % 16.
#pragma once

#include <bit>

#include "philox.h"

#define SAGE_KERNEL "distinct_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

constexpr int kTileWords = 64;

// Sets the bits of `num` of n elements in a bitmap that is 0. Distinct elements are counted once, however often they
// are drawn; otherwise every draw counts.
inline void draw_bits(Isa isa, uint64_t key, int64_t group, int64_t n, int64_t num, bool distinct, uint64_t* bitmap) {
  const auto size = static_cast<uint32_t>(n), skipped = (0u - size) % size;
  alignas(64) uint32_t words[kTileWords];
  for (auto tile = static_cast<uint64_t>(group) << 28; num > 0; ++tile) {
    SAGE_CHOOSE(isa, random_words, key, tile, words);
    for (int j = 0; j < kTileWords && num > 0; ++j) {
      const uint64_t scaled = uint64_t{words[j]} * size;
      if (static_cast<uint32_t>(scaled) < skipped) continue;
      const uint64_t at = scaled >> 32, bit = uint64_t{1} << (at & 63);
      num -= !distinct || !(bitmap[at >> 6] & bit);
      bitmap[at >> 6] |= bit;
    }
  }
}

// Writes the indices of `num` random elements of a group of n elements, plus `base`, in ascending order; returns how
// many these are. Unless they are distinct, fewer than `num` can result.
inline int64_t draw_group(Isa isa, uint64_t key, int64_t group, int64_t n, int64_t num, bool distinct, int64_t base,
                          int32_t* indices) {
  if (num == 0) return 0;
  if (num == n && distinct) {
    for (int64_t i = 0; i < n; ++i) indices[i] = static_cast<int32_t>(base + i);
    return n;
  }
  static thread_local Buffer<uint64_t> buffer;
  const int64_t num_words = (n + 63) / 64;
  buffer.reserve(num_words);
  uint64_t* bitmap = buffer.data();
  std::fill_n(bitmap, num_words, uint64_t{0});
  // Of more than half, the others are drawn.
  const bool inverted = distinct && num > n - num;
  draw_bits(isa, key, group, n, inverted ? n - num : num, distinct, bitmap);
  int64_t size = 0;
  for (int64_t word = 0; word < num_words; ++word) {
    uint64_t left = inverted ? ~bitmap[word] : bitmap[word];
    if (word == num_words - 1 && n % 64) left &= (uint64_t{1} << n % 64) - 1;
    for (; left; left &= left - 1)
      indices[size++] = static_cast<int32_t>(base + 64 * word + std::countr_zero(left));
  }
  return size;
}

}  // namespace sage::cpu
