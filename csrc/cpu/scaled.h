// Quantises to floats of 8 or 4 bits by given scales, and decodes one payload of them, of blocks of a multiple of 16 elements, such as those of microscaled
// formats. The bits are those of levels.h; the numbers that follow from a scale are computed for sixteen blocks at a time,
// and a block has no bound in memory.
#pragma once

#include "blocks.h"

namespace sage::cpu {

// A signal, its codes, and its error where it is kept.
struct ScaledBlocks {
  Coding coding;
  float* signal;
  int64_t numel;
  const int64_t *bounds, *firsts;  // of each group, and the end: its first element, and its first block
  int64_t num_groups, block;
  const float* scales;  // of each block
  bool keep;            // whether the error is left in the signal
  uint8_t* bytes;
};

// One payload, whose values, or what `out` holds and them, are divided.
struct ScaledValues {
  Coding coding;
  float* out;
  int64_t numel;
  const int64_t *bounds, *firsts;
  int64_t num_groups, block;
  const float* scales;
  const uint8_t* bytes;
  int64_t divisor;
  bool added;            // to what `out` holds
  bool streams = false;  // whether `out` is written past the caches where it is at a multiple of 64
};

constexpr int64_t kPacked = 1024;  // codes that are packed at a time
alignas(64) inline constexpr float kValuesOfE2m1[16] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                                        -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

}  // namespace sage::cpu

#define SAGE_KERNEL "scaled_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

inline bool is_by_scaled_blocks(const Coding& coding, int64_t block) {
  const bool is_float = coding.codec == Codec::e4m3 || coding.codec == Codec::e5m2 || coding.codec == Codec::e2m1;
  return is_float && block > 0 && block % 16 == 0;
}

// Whether a byte of codes of 4 bits is never of two groups.
inline bool is_of_whole_bytes(const Coding& coding, const std::vector<int64_t>& bounds) {
  if (coding.bits == 4)
    for (size_t g = 0; g + 1 < bounds.size(); ++g)
      if (bounds[g] % 2) return false;
  return true;
}

inline void quantise_scaled(Isa isa, const Team& team, const ScaledBlocks& x) {
  const int64_t parts = team.parts(x.numel);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, quantise_scaled, x, part_begin(x.numel, parts, part) / kRandomTile * kRandomTile,
                part + 1 == parts ? x.numel : part_begin(x.numel, parts, part + 1) / kRandomTile * kRandomTile);
  });
}

// Only where is_of_whole_bytes.
inline void average_scaled(Isa isa, const Team& team, ScaledValues x) {
  x.streams = !x.added && x.numel > int64_t{1} << 20;
  const int64_t parts = team.parts(x.numel);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, average_scaled, x, part_begin(x.numel, parts, part) / kRandomTile * kRandomTile,
                part + 1 == parts ? x.numel : part_begin(x.numel, parts, part + 1) / kRandomTile * kRandomTile);
  });
}

}  // namespace sage::cpu
