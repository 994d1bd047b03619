// Elias delta streams of the nonzero levels of each group: the gap from the one before, a bit that is 1 if the level is
// negative, and the magnitude. sage/ops/elias.py describes the format.
#pragma once

#include <array>
#include <bit>
#include <limits>
#include <vector>

#include "base.h"

namespace sage::cpu {

constexpr int64_t kGreatest = 0x7fffffff;  // largest number that can be encoded, and most bits of all streams together

// Bits of a stream, the first one highest.
struct Field {
  uint64_t bits = 0;
  int width = 0;
};

constexpr int bit_length(uint32_t x) { return 32 - std::countl_zero(x); }

// Returns the code of x, from 1 to 2^31 - 1: z zeros, its length in z + 1 bits, and its bits but the first.
constexpr Field elias_code(uint32_t x) {
  const int length = bit_length(x), zeros = bit_length(static_cast<uint32_t>(length)) - 1;
  return {static_cast<uint64_t>(length) << (length - 1) | (x ^ 1u << (length - 1)), 2 * zeros + length};
}

// Returns the sign of a level that is not 0, and the code of its magnitude.
constexpr Field signed_code(int32_t level) {
  const Field code = elias_code(level < 0 ? 0u - static_cast<uint32_t>(level) : static_cast<uint32_t>(level));
  return {static_cast<uint64_t>(level < 0) << code.width | code.bits, code.width + 1};
}

constexpr int kShortGap = 64;
constexpr auto kGapCodes = [] {
  std::array<Field, kShortGap> codes{};
  for (uint32_t gap = 1; gap < kShortGap; ++gap) codes[gap] = elias_code(gap);
  return codes;
}();
constexpr auto kByteCodes = [] {  // of levels of a byte
  std::array<Field, 256> codes{};
  for (int level = -128; level < 128; ++level)
    if (level) codes[static_cast<uint8_t>(level)] = signed_code(level);
  return codes;
}();

// Reads the code that the bits begin with. Its width is 0 if no number below 2^31 has it.
constexpr Field read_code(uint64_t bits) {
  const int zeros = std::countl_zero(bits | 1);
  if (zeros > 4) return {};
  const int length = static_cast<int>(bits >> (63 - 2 * zeros));
  return {1ull << (length - 1) | (length > 1 ? bits << (2 * zeros + 1) >> (65 - length) : 0), 2 * zeros + length};
}

// The up to three triples that lie within the next bits of a stream, and their width; 0 if not even one does. The last
// one is repeated with a gap of 0.
struct Triples {
  uint8_t gaps[3] = {};
  int8_t levels[3] = {};
  uint8_t width = 0;
  uint8_t unused = 0;  // eight bytes are one load
};

constexpr int kPeek = 12;
constexpr auto kTriples = [] {
  std::array<Triples, 1 << kPeek> table{};
  for (uint64_t prefix = 0; prefix < table.size(); ++prefix) {
    Triples& entry = table[prefix];
    for (int t = 0; t < 3; ++t) {
      const uint64_t bits = prefix << (64 - kPeek) << entry.width;
      const Field gap = read_code(bits), magnitude = read_code(bits << gap.width << 1);
      const int width = gap.width + 1 + magnitude.width;
      const bool is_whole = gap.width && magnitude.width && entry.width + width <= kPeek;
      const auto level = static_cast<int8_t>(is_whole ? magnitude.bits : 0);
      entry.gaps[t] = static_cast<uint8_t>(is_whole ? gap.bits : 0);
      entry.levels[t] = is_whole ? (bits << gap.width >> 63 ? -level : level) : entry.levels[t > 0 ? t - 1 : 0];
      if (is_whole) entry.width += static_cast<uint8_t>(width);
    }
  }
  return table;
}();

inline Field level_code(int8_t level) { return kByteCodes[static_cast<uint8_t>(level)]; }
inline Field level_code(int32_t level) { return signed_code(level); }

// The words of some groups, as bytes in bit order. Every group begins a new word.
struct Stream {
  Buffer<uint8_t> bytes;
  int64_t size = 0;
};

// Returns the words of 32 that a stream takes.
inline int64_t words_of(int64_t bits) { return (bits + 31) / 32; }

constexpr int64_t kBlockRoom = 64 * 10 + 16;  // bytes: a triple of 79 bits for each of 64 elements, and whole stores

}  // namespace sage::cpu

#define SAGE_KERNEL "elias_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// Returns the first group of part `i`: parts have about as many elements.
inline int64_t first_group(const std::vector<int64_t>& bounds, int64_t parts, int64_t i) {
  const int64_t groups = static_cast<int64_t>(bounds.size()) - 1;
  if (i == parts) return groups;
  return std::lower_bound(bounds.begin(), bounds.end() - 1, bounds.back() / parts * i) - bounds.begin();
}

// Encodes the levels of each group; returns the streams of successive groups, which stay until this thread encodes again.
// Sets bits to the length of each, or to -1 if a level is below -kGreatest.
template <class T>
const std::vector<Stream>& encode_streams(Isa isa, const Team& team, const T* levels, const std::vector<int64_t>& bounds,
                                          int64_t* bits) {
  static thread_local std::vector<Stream> reused;
  std::vector<Stream>& streams = reused;
  const int64_t parts = team.parts(bounds.back());
  if (static_cast<int64_t>(streams.size()) != parts) streams = std::vector<Stream>(parts);
  team.each(parts, [&](int64_t part) {
    streams[part].size = 0;
    for (int64_t g = first_group(bounds, parts, part); g < first_group(bounds, parts, part + 1); ++g)
      bits[g] = SAGE_CHOOSE(isa, encode_group, levels + bounds[g], bounds[g + 1] - bounds[g], streams[part]);
  });
  return streams;
}

// Writes the streams, one behind the other, as words.
inline void copy_words(const Team& team, const std::vector<Stream>& streams, uint32_t* words) {
  const auto parts = static_cast<int64_t>(streams.size());
  team.each(parts, [&](int64_t part) {
    uint32_t* out = words;
    for (int64_t before = 0; before < part; ++before) out += streams[before].size / 4;
    const uint8_t* in = streams[part].bytes.data();
    for (int64_t i = 0; i < streams[part].size / 4; ++i) {
      uint32_t word;
      std::memcpy(&word, in + 4 * i, 4);
      out[i] = __builtin_bswap32(word);
    }
  });
}

// Decodes the streams of all groups, of the lengths in `bits`, to levels. Returns false if these are not `num` words,
// or a stream is not one of triples whose elements are in its group, or a level is outside T.
template <class T>
bool decode_streams(Isa isa, const Team& team, const uint32_t* words, int64_t num, const int32_t* bits,
                    const std::vector<int64_t>& bounds, T* levels) {
  const auto groups = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> starts(groups + 1, 0);
  for (int64_t g = 0; g < groups; ++g) {
    if (bits[g] < 0) return false;
    starts[g + 1] = starts[g] + words_of(bits[g]);
  }
  if (starts[groups] != num) return false;
  const int64_t parts = team.parts(bounds.back());
  std::vector<char> is_wrong(parts, 0);
  team.each(parts, [&](int64_t part) {
    for (int64_t g = first_group(bounds, parts, part); g < first_group(bounds, parts, part + 1); ++g)
      if (!SAGE_CHOOSE(isa, decode_group, words + starts[g], bits[g], bounds[g + 1] - bounds[g], levels + bounds[g]))
        is_wrong[part] = 1;
  });
  return std::find(is_wrong.begin(), is_wrong.end(), 1) == is_wrong.end();
}

}  // namespace sage::cpu
