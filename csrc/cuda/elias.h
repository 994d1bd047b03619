// Elias delta streams on a GPU; sage/ops/elias.py describes the format, and cpu/elias.h the codes.
#pragma once

#include "segments.h"

namespace sage::cuda {

constexpr int64_t kSpan = 16;  // levels of a thread: tiles begin at multiples of that many

// Results that the host needs; all 0 before.
struct EliasTotals {
  unsigned long long words, bits;
  unsigned long long wrong;    // not 0: a level that has no code, or words that are not streams
  unsigned long long refused;  // not 0: the lengths are not those of so many words, so nothing is decoded
};

// Levels of int8 or int32.
struct Levels {
  const void* data;
  bool in_bytes;
};

// Measures the stream of each group: its bits in 64 and in 32 bits, the words before it, and for each tile the element behind
// the last level before it and the bits before it in its group. `group_bits` are 0 before, and so are `sums`, two words
// for each tile, and one more. Two launches.
struct Measured {
  int32_t* behind_last;            // of each tile
  unsigned long long* bits_before;
  unsigned long long* group_bits;  // of each group
  unsigned long long* words_before;
  int32_t* lengths;
};
void measure_streams(const Segments& cut, const Levels& levels, const Measured& measured, unsigned long long* sums,
                     EliasTotals* totals, Stream stream);

// Writes the words, which are 0 before.
void encode_streams(const Segments& cut, const Levels& levels, const Measured& measured, uint32_t* words, Stream stream);

constexpr int kSubBits = 128;                    // bits of a stream for one thread
constexpr int kPartBits = kSubBits * kThreads;   // for one block
constexpr int kEntries = 80;                     // bits of the longest triple, and one more

// Streams to decode. A part is kPartBits of a stream.
struct Streams {
  const uint32_t* words;
  int64_t num_words;
  const int32_t* bits;           // of each group
  const int32_t* bounds;         // of each group, and the end
  int32_t num_groups;
  int64_t most_parts;            // num_words · 32 / kPartBits + num_groups
  int64_t *word_begins, *parts;  // of each group, and the end
  uint8_t *exits, *entries;      // kEntries for each part, and one
  unsigned long long* sums;      // for each part, and one more, all 0 before
};

// Decodes all streams to levels, which are 0 before. Four launches.
void decode_streams(const Streams& streams, float* levels, int8_t* bytes, EliasTotals* totals, Stream stream);

}  // namespace sage::cuda
