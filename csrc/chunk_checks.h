// Checks of a table of chunks, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

constexpr int64_t kMostOfChunk = 4096, kRowOfChunk = 64;  // elements of a chunk, and of a row of it

// Checks that x is a table with a row for each chunk; returns how many there are.
inline int64_t check_table(const Tensor& chunks, const Tensor& beside) {
  const int64_t num = check_rows(chunks, 4, "chunks", beside);
  STD_TORCH_CHECK(chunks.scalar_type() == ScalarType::Int, "chunks has another dtype: expected int32");
  return num;
}

// Checks the rows of a table in the host's memory, of chunks of n elements from which `num` are taken.
inline void check_chunks(const int32_t* rows, int64_t num_chunks, int64_t n, int64_t num) {
  STD_TORCH_CHECK(num_chunks > 0 ? rows[3] == 0 : num == 0,
                  "chunks: expected the positions of the first to begin at 0, and none without a chunk");
  for (int64_t p = 0; p < num_chunks; ++p) {
    const int64_t first = rows[4 * p], stride = rows[4 * p + 1], length = rows[4 * p + 2];
    const int64_t count = (p + 1 < num_chunks ? rows[4 * p + 7] : num) - rows[4 * p + 3];
    STD_TORCH_CHECK(length >= 1 && length <= kMostOfChunk, "chunks: ", length, " elements of chunk ", p,
                    ": expected 1 to ", kMostOfChunk);
    STD_TORCH_CHECK(stride >= kRowOfChunk, "chunks: ", stride, " elements from row to row of chunk ", p, ": expected ",
                    kRowOfChunk, " or more");
    const int64_t last = first + (length - 1) / kRowOfChunk * stride + (length - 1) % kRowOfChunk;
    STD_TORCH_CHECK(first >= 0 && last < n, "chunks: chunk ", p, " is elements ", first, " to ", last,
                    ": expected them from 0 to ", n - 1);
    STD_TORCH_CHECK(count >= 0 && count <= length, "chunks: ", count, " to take of the ", length, " elements of chunk ",
                    p);
  }
}

}  // namespace sage
