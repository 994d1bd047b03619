// Codes for ascending indices with fewer than 32 bits: the gaps between them (LEB128), or a bitmap.
//
// A gap takes 1 byte below 128 and 2 bytes below 16,384; at a density of 1 % this is about 10 bits per index. A
// bitmap always takes n/8 bytes, and is the smaller code above a density of about 1/8.
#pragma once

#include "base.h"

namespace sage::cpu {

constexpr int kLongest = 5;  // bytes of a gap of 32 bits, 7 in a byte

// Returns the number of bytes of the gaps; -1 if the indices are not strictly ascending or the first is negative.
inline int64_t gap_bytes(const int32_t* at, int64_t num) {
  int64_t bytes = 0;
  int64_t before = -1;
  bool wrong = false;
  for (int64_t i = 0; i < num; ++i) {
    const int64_t gap = at[i] - before - 1;
    wrong |= gap < 0;
    bytes += 1 + (gap > 0x7f) + (gap > 0x3fff) + (gap > 0x1fffff) + (gap > 0xfffffff);
    before = at[i];
  }
  return wrong ? -1 : bytes;
}

inline void encode_gaps(const int32_t* at, int64_t num, uint8_t* bytes) {
  int64_t before = -1;
  for (int64_t i = 0; i < num; ++i) {
    auto gap = static_cast<uint32_t>(at[i] - before - 1);
    for (; gap > 0x7f; gap >>= 7) *bytes++ = static_cast<uint8_t>(gap | 0x80);
    *bytes++ = static_cast<uint8_t>(gap);
    before = at[i];
  }
}

// Returns false if the bytes do not encode exactly `num` gaps, or if an index exceeds the range of int32.
inline bool decode_gaps(const uint8_t* bytes, int64_t num_bytes, int64_t num, int32_t* at) {
  const uint8_t* const end = bytes + num_bytes;
  int64_t before = -1;
  for (int64_t i = 0; i < num; ++i) {
    int64_t gap = 0;
    for (int shift = 0;; shift += 7) {
      if (bytes == end || shift == 7 * kLongest) return false;
      const int64_t byte = *bytes++;
      gap |= (byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    before += gap + 1;
    if (before > 0x7fffffff) return false;
    at[i] = static_cast<int32_t>(before);
  }
  return bytes == end;
}

// Returns false if an index is outside [0, n).
inline bool encode_bitmap(const int32_t* at, int64_t num, int64_t n, uint8_t* bytes) {
  std::fill_n(bytes, (n + 7) / 8, uint8_t{0});
  for (int64_t i = 0; i < num; ++i) {
    if (at[i] < 0 || at[i] >= n) return false;
    bytes[at[i] >> 3] |= static_cast<uint8_t>(1u << (at[i] & 7));
  }
  return true;
}

// Returns a word of 64 bits of the bitmap; bits beyond its end are 0.
inline uint64_t word_of(const uint8_t* bytes, int64_t num_bytes, int64_t byte) {
  uint64_t word = 0;
  std::memcpy(&word, bytes + byte, std::min<int64_t>(8, num_bytes - byte));
  return word;
}

inline int64_t count_bits(const uint8_t* bytes, int64_t num_bytes) {
  int64_t count = 0;
  for (int64_t byte = 0; byte < num_bytes; byte += 8) count += __builtin_popcountll(word_of(bytes, num_bytes, byte));
  return count;
}

inline void decode_bitmap(const uint8_t* bytes, int64_t num_bytes, int32_t* at) {
  for (int64_t byte = 0; byte < num_bytes; byte += 8)
    for (uint64_t word = word_of(bytes, num_bytes, byte); word; word &= word - 1)
      *at++ = static_cast<int32_t>(byte * 8 + __builtin_ctzll(word));
}

}  // namespace sage::cpu
