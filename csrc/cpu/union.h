// The union of lists of indices, and membership in a list: through a bitmap of the vector, so that nothing is sorted.
#pragma once

#include <bit>

#include "base.h"

namespace sage::cpu {

SAGE_CLONES static void set_bits(const int32_t* at, int64_t num, uint64_t* words) {
  for (int64_t i = 0; i < num; ++i) words[at[i] >> 6] |= uint64_t{1} << (at[i] & 63);
}

// Writes the indices of all set bits in ascending order, and how many are set before each word; returns their number.
SAGE_CLONES static int64_t list_bits(const uint64_t* words, int64_t num_words, int32_t* before, int32_t* out) {
  int64_t size = 0;
  for (int64_t word = 0; word < num_words; ++word) {
    before[word] = static_cast<int32_t>(size);
    for (uint64_t left = words[word]; left; left &= left - 1)
      out[size++] = static_cast<int32_t>(64 * word + std::countr_zero(left));
  }
  return size;
}

// Writes the position of each index among the set bits.
SAGE_CLONES static void find_places(const uint64_t* words, const int32_t* before, const int32_t* at, int64_t num,
                                    int32_t* out) {
  for (int64_t i = 0; i < num; ++i) {
    const uint64_t lower = words[at[i] >> 6] & ((uint64_t{1} << (at[i] & 63)) - 1);
    out[i] = before[at[i] >> 6] + std::popcount(lower);
  }
}

SAGE_CLONES static void find_members(const uint64_t* words, const int32_t* at, int64_t num, uint8_t* out) {
  for (int64_t i = 0; i < num; ++i) out[i] = words[at[i] >> 6] >> (at[i] & 63) & 1;
}

inline int64_t bitmap_words(int64_t n) { return (n + 63) / 64; }

// Returns a bitmap of n elements in the calling thread's memory, in which the bits of these indices are set.
inline const uint64_t* bitmap_of(const int32_t* at, int64_t num, int64_t n) {
  static thread_local Buffer<uint64_t> kept;
  kept.reserve(bitmap_words(n));
  std::fill_n(kept.data(), bitmap_words(n), uint64_t{0});
  set_bits(at, num, kept.data());
  return kept.data();
}

// Writes the different indices among these, ascending, and the place of each in that list; returns how many differ.
inline int64_t unite(const int32_t* at, int64_t num, int64_t n, int32_t* united, int32_t* places) {
  static thread_local Buffer<int32_t> before;
  before.reserve(bitmap_words(n));
  const uint64_t* words = bitmap_of(at, num, n);
  const int64_t size = list_bits(words, bitmap_words(n), before.data(), united);
  find_places(words, before.data(), at, num, places);
  return size;
}

}  // namespace sage::cpu
