// Bits in the order of the elements, and the two formats of 32-bit words that other systems use. A bit is set in the
// words if the element is negative, which is where it is not set in the bytes.
#pragma once

#include <vector>

#include "base.h"

namespace sage::cpu {

inline int64_t num_words(int64_t n) { return (n + 31) / 32; }

inline uint32_t reversed(uint32_t x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return x >> 24 | (x >> 8 & 0xff00u) | (x & 0xff00u) << 8 | x << 24;
}

// Returns the up to 32 bits from bit `first` of num_bytes bytes; bits beyond the bytes are 0.
inline uint32_t bits_at(const uint8_t* bytes, int64_t num_bytes, int64_t first) {
  uint64_t word = 0;
  std::memcpy(&word, bytes + first / 8, std::min<int64_t>(8, num_bytes - first / 8));
  return static_cast<uint32_t>(word >> first % 8);
}

// The same for `num` words, all of whose bits and the next byte are in the bytes.
SAGE_CLONES static void whole_words(const uint8_t* bytes, int64_t first, int64_t num, uint32_t* words) {
  const uint8_t* at = bytes + first / 8;
  const uint32_t shift = first % 8;
  for (int64_t i = 0; i < num; ++i) {
    uint32_t word;
    std::memcpy(&word, at + 4 * i, 4);
    word = word >> shift | static_cast<uint32_t>(at[4 * i + 4]) << (31 - shift) << 1;
    words[i] = reversed(~word);
  }
}

// Words of each group: its first element is the highest bit of its first word (BytePS: onebit).
inline void words_by_group(const uint8_t* bytes, const std::vector<int64_t>& bounds, uint32_t* words) {
  const int64_t num_bytes = (bounds.back() + 7) / 8;
  for (size_t g = 0; g + 1 < bounds.size(); ++g) {
    const int64_t begin = bounds[g], n = bounds[g + 1] - begin, num = num_words(n);
    const int64_t whole = std::max<int64_t>(0, std::min(n / 32, (num_bytes - 1 - begin / 8) / 4));
    whole_words(bytes, begin, whole, words);
    for (int64_t i = whole; i < num; ++i) {
      const int64_t have = std::min<int64_t>(32, n - 32 * i);
      const uint32_t mask = have == 32 ? ~0u : (1u << have) - 1;
      words[i] = reversed(~bits_at(bytes, num_bytes, begin + 32 * i) & mask);
    }
    words += num;
  }
}

// The inverse of whole_words: `at` is the byte that already holds `shift` bits, and gets the next ones.
SAGE_CLONES static void whole_bits(const uint32_t* words, int64_t num, uint32_t shift, uint8_t* at) {
  if (num == 0) return;
  uint32_t last = ~reversed(words[0]);
  const uint32_t begun = last << shift | (*at & ((1u << shift) - 1));
  std::memcpy(at, &begun, 4);
  for (int64_t i = 1; i < num; ++i) {
    const uint32_t word = ~reversed(words[i]) << shift | ~reversed(words[i - 1]) >> 1 >> (31 - shift);
    std::memcpy(at + 4 * i, &word, 4);
  }
  last = ~reversed(words[num - 1]);
  if (shift) at[4 * num] = static_cast<uint8_t>(last >> (32 - shift));
}

// The inverse of words_by_group; bits beyond the end of a group are ignored.
inline void bits_by_group(const uint32_t* words, const std::vector<int64_t>& bounds, uint8_t* bytes) {
  for (size_t g = 0; g + 1 < bounds.size(); ++g) {
    const int64_t begin = bounds[g], n = bounds[g + 1] - begin, whole = n / 32;
    if (n == 0) continue;
    if (begin % 8 == 0) bytes[begin / 8] = 0;
    whole_bits(words, whole, begin % 8, bytes + begin / 8);
    for (int64_t i = begin + 32 * whole; i < bounds[g + 1]; ++i) {
      if (i % 8 == 0) bytes[i / 8] = 0;
      const bool set = !(words[whole] >> (31 - (i - begin - 32 * whole)) & 1);
      bytes[i / 8] = static_cast<uint8_t>((bytes[i / 8] & ((1u << i % 8) - 1)) | static_cast<unsigned>(set) << i % 8);
    }
    words += num_words(n);
  }
}

constexpr int kBlocks = 16;  // blocks of 32 x 32 bits that are transposed together, one in each lane

// Transposes the blocks: bit c of row r of a block becomes bit r of row c.
SAGE_CLONES static void transpose(uint32_t rows[32][kBlocks]) {
  uint32_t mask = 0x0000ffffu;
  for (int half = 16; half > 0; half /= 2, mask ^= mask << half)
    for (int r = 0; r < 32; r = (r + half + 1) & ~half)
      for (int b = 0; b < kBlocks; ++b) {
        const uint32_t swapped = (rows[r][b] >> half ^ rows[r + half][b]) & mask;
        rows[r][b] ^= swapped << half;
        rows[r + half][b] ^= swapped;
      }
}

// Where `kBlocks` blocks of columns lie in the bytes of a vector that is read by columns. The elements of row r of the
// words are in rows[31 - r], so that the transposed row of a column is its word.
struct Columns {
  int64_t n, num, num_bytes, first;  // elements, words, bytes, and the first column of the blocks

  // Whether all of their elements exist, and a byte behind those of each row.
  bool are_whole() const {
    const int64_t last = 31 * num + first;
    return first + 32 * kBlocks <= num && last + 32 * kBlocks <= n && last / 8 + 4 * kBlocks < num_bytes;
  }

  int64_t element(int64_t r, int64_t b) const { return r * num + first + 32 * b; }

  // The bits of a block's row that are elements.
  uint32_t mask(int64_t r, int64_t b) const {
    const int64_t have = std::min({int64_t{32}, num - first - 32 * b, n - element(r, b)});
    return have >= 32 ? ~0u : have > 0 ? (1u << have) - 1 : 0;
  }
};

SAGE_CLONES static void read_whole(const Columns& at, const uint8_t* bytes, uint32_t rows[32][kBlocks]) {
  for (int64_t r = 0; r < 32; ++r) {
    const uint8_t* row = bytes + at.element(r, 0) / 8;
    const uint32_t shift = at.element(r, 0) % 8;
    for (int64_t b = 0; b < kBlocks; ++b) {
      uint32_t word;
      std::memcpy(&word, row + 4 * b, 4);
      rows[31 - r][b] = ~(word >> shift | static_cast<uint32_t>(row[4 * b + 4]) << (31 - shift) << 1);
    }
  }
}

// The inverse of read_whole. What the bytes hold of other elements stays, where it is 0 in the place of these.
SAGE_CLONES static void write_whole(const Columns& at, const uint32_t rows[32][kBlocks], uint8_t* bytes) {
  for (int64_t r = 0; r < 32; ++r) {
    uint8_t* row = bytes + at.element(r, 0) / 8;
    const uint32_t shift = at.element(r, 0) % 8, *from = rows[31 - r];
    uint32_t begun;
    std::memcpy(&begun, row, 4);
    begun |= ~from[0] << shift;
    std::memcpy(row, &begun, 4);
    for (int64_t b = 1; b < kBlocks; ++b) {
      const uint32_t word = ~from[b] << shift | ~from[b - 1] >> 1 >> (31 - shift);
      std::memcpy(row + 4 * b, &word, 4);
    }
    row[4 * kBlocks] |= static_cast<uint8_t>(~from[kBlocks - 1] >> 1 >> (31 - shift));
  }
}

// The words of a vector read by columns: element r·V + j, of V words, is bit 31 − r of word j (the utility study's
// format: Agarwal et al., MLSys 2022).
inline void words_by_column(const uint8_t* bytes, int64_t n, uint32_t* words) {
  Columns at{n, num_words(n), (n + 7) / 8, 0};
  uint32_t rows[32][kBlocks];
  for (; at.first < at.num; at.first += 32 * kBlocks) {
    if (at.are_whole()) {
      read_whole(at, bytes, rows);
    } else {
      for (int64_t r = 0; r < 32; ++r)
        for (int64_t b = 0; b < kBlocks; ++b) {
          const uint32_t mask = at.mask(r, b);
          rows[31 - r][b] = mask ? ~bits_at(bytes, at.num_bytes, at.element(r, b)) & mask : 0;
        }
    }
    transpose(rows);
    for (int64_t b = 0; b < kBlocks; ++b)
      for (int64_t c = 0; c < std::min<int64_t>(32, at.num - at.first - 32 * b); ++c)
        words[at.first + 32 * b + c] = rows[c][b];
  }
}

// The inverse of words_by_column. The bytes must be 0 before.
inline void bits_by_column(const uint32_t* words, int64_t n, uint8_t* bytes) {
  Columns at{n, num_words(n), (n + 7) / 8, 0};
  uint32_t rows[32][kBlocks];
  for (; at.first < at.num; at.first += 32 * kBlocks) {
    for (int64_t b = 0; b < kBlocks; ++b)
      for (int64_t c = 0; c < 32; ++c) {
        const int64_t column = at.first + 32 * b + c;
        rows[c][b] = column < at.num ? words[column] : 0;
      }
    transpose(rows);
    if (at.are_whole()) {
      write_whole(at, rows, bytes);
      continue;
    }
    for (int64_t r = 0; r < 32; ++r)
      for (int64_t b = 0; b < kBlocks; ++b) {
        const uint32_t mask = at.mask(r, b);
        if (mask == 0) continue;
        const int64_t element = at.element(r, b), room = std::min<int64_t>(8, at.num_bytes - element / 8);
        uint64_t there = 0;
        std::memcpy(&there, bytes + element / 8, room);
        there |= static_cast<uint64_t>(~rows[31 - r][b] & mask) << element % 8;
        std::memcpy(bytes + element / 8, &there, room);
      }
  }
}

}  // namespace sage::cpu
