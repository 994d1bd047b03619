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
  using Row = uint32_t __attribute__((vector_size(4 * kBlocks)));
  uint32_t mask = 0x0000ffffu;
  for (int half = 16; half > 0; half /= 2, mask ^= mask << half)
    for (int r = 0; r < 32; r = (r + half + 1) & ~half) {
      Row low, high;
      std::memcpy(&low, rows[r], sizeof low);
      std::memcpy(&high, rows[r + half], sizeof high);
      const Row swapped = (low >> half ^ high) & mask;
      low ^= swapped << half;
      high ^= swapped;
      std::memcpy(rows[r], &low, sizeof low);
      std::memcpy(rows[r + half], &high, sizeof high);
    }
}

// Writes the transpose of rows x columns words, whole rows of each: both numbers are multiples of 8.
SAGE_CLONES static void transpose_words(const uint32_t* from, int64_t rows, int64_t columns, uint32_t* to) {
#if defined(__GNUC__) && !defined(__clang__)
  using Eight = uint32_t __attribute__((vector_size(32)));
  constexpr Eight kLow = {0, 8, 1, 9, 4, 12, 5, 13}, kHigh = {2, 10, 3, 11, 6, 14, 7, 15};
  constexpr Eight kLowPairs = {0, 1, 8, 9, 4, 5, 12, 13}, kHighPairs = {2, 3, 10, 11, 6, 7, 14, 15};
  constexpr Eight kLowHalves = {0, 1, 2, 3, 8, 9, 10, 11}, kHighHalves = {4, 5, 6, 7, 12, 13, 14, 15};
  for (int64_t r = 0; r < rows; r += 8)
    for (int64_t c = 0; c < columns; c += 8) {
      Eight x[8], y[8];
      for (int i = 0; i < 8; ++i) std::memcpy(&x[i], from + (r + i) * columns + c, sizeof x[i]);
      for (int i = 0; i < 8; i += 2) {
        y[i] = __builtin_shuffle(x[i], x[i + 1], kLow);
        y[i + 1] = __builtin_shuffle(x[i], x[i + 1], kHigh);
      }
      for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
          x[i + 2 * k] = __builtin_shuffle(y[i + k], y[i + k + 2], kLowPairs);
          x[i + 2 * k + 1] = __builtin_shuffle(y[i + k], y[i + k + 2], kHighPairs);
        }
      for (int i = 0; i < 4; ++i) {
        y[i] = __builtin_shuffle(x[i], x[i + 4], kLowHalves);
        y[i + 4] = __builtin_shuffle(x[i], x[i + 4], kHighHalves);
      }
      for (int i = 0; i < 8; ++i) std::memcpy(to + (c + i) * rows + r, &y[i], sizeof y[i]);
    }
#else
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
#endif
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

// The words are copied first: the compiler vectorizes no loop whose bytes may be those of its words.
SAGE_CLONES static void read_whole(const Columns& at, const uint8_t* bytes, uint32_t rows[32][kBlocks]) {
  for (int64_t r = 0; r < 32; ++r) {
    const uint8_t* row = bytes + at.element(r, 0) / 8;
    const uint32_t shift = at.element(r, 0) % 8;
    uint32_t words[kBlocks + 1];
    std::memcpy(words, row, 4 * kBlocks);
    words[kBlocks] = row[4 * kBlocks];
    for (int64_t b = 0; b < kBlocks; ++b) rows[31 - r][b] = ~(words[b] >> shift | words[b + 1] << (31 - shift) << 1);
  }
}

// The inverse of read_whole. What the bytes hold of other elements stays, where it is 0 in the place of these.
SAGE_CLONES static void write_whole(const Columns& at, const uint32_t rows[32][kBlocks], uint8_t* bytes) {
  for (int64_t r = 0; r < 32; ++r) {
    uint8_t* row = bytes + at.element(r, 0) / 8;
    const uint32_t shift = at.element(r, 0) % 8;
    uint32_t ours[kBlocks + 1] = {}, words[kBlocks];
    for (int64_t b = 0; b < kBlocks; ++b) ours[b + 1] = ~rows[31 - r][b];
    for (int64_t b = 0; b < kBlocks; ++b) words[b] = ours[b + 1] << shift | ours[b] >> 1 >> (31 - shift);
    words[0] |= row[0];  // what the byte holds of the elements before
    std::memcpy(row, words, sizeof words);
    row[4 * kBlocks] |= static_cast<uint8_t>(ours[kBlocks] >> 1 >> (31 - shift));
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
    if (at.first + 32 * kBlocks <= at.num) {
      transpose_words(rows[0], 32, kBlocks, words + at.first);
      continue;
    }
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
    if (at.first + 32 * kBlocks <= at.num) {
      transpose_words(words + at.first, kBlocks, 32, rows[0]);
    } else {
      for (int64_t b = 0; b < kBlocks; ++b)
        for (int64_t c = 0; c < 32; ++c) {
          const int64_t column = at.first + 32 * b + c;
          rows[c][b] = column < at.num ? words[column] : 0;
        }
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
