// The largest elements of each chunk of a vector by magnitude, the lower position first among equals. A chunk is a tile
// of rows of 64 elements that are `stride` apart, or, with a stride of 64, a run.
//
// A chunk is copied into the cache as magnitudes, which are cut into at least 4·k parts if there are as many elements.
// At least k elements are as large as the k-th largest of the parts' maxima, so only those that are have to be ranked:
// of normally distributed elements, about 73 of 4,096 for k = 64.
#pragma once

#include <bit>
#include <numeric>

#include "base.h"

namespace sage::cpu {

constexpr int64_t kMostInChunk = 4096, kRowInChunk = 64;  // elements

struct Chunk {
  int32_t first;   // element in the vector
  int32_t stride;  // from row to row
  int32_t length;  // elements, 1 to kMostInChunk; the last row may be shorter than 64
  int32_t start;   // elements taken from the chunks before it
};

inline int64_t element(const Chunk& chunk, int64_t at) {
  return chunk.first + at / kRowInChunk * chunk.stride + at % kRowInChunk;
}

struct Chunks {
  const float* x;
  const Chunk* chunks;
  int64_t num_chunks;
  int64_t num;  // elements taken from all chunks
  float* values;
  int32_t* positions;  // in their chunk, ascending in each
};

}  // namespace sage::cpu

#define SAGE_KERNEL "chunks_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

inline void largest_in_chunks(Isa isa, const Team& team, const Chunks& x) {
  const int64_t num = x.num_chunks, parts = std::min(std::max<int64_t>(num, 1), team.parts(num * kMostInChunk));
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, take_largest, x, num * part / parts, num * (part + 1) / parts);
  });
}

}  // namespace sage::cpu
