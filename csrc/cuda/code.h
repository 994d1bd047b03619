// Gaps between ascending indices in bytes (LEB128) on a GPU; cpu/code.h describes the format.
#pragma once

#include "kernels.h"

namespace sage::cuda {

constexpr int kLongest = 5;  // bytes of a gap

// The bytes of `num` ascending indices, at most: of 2³¹ elements so few are apart by 128, 16,384, … that they add the rest.
inline int64_t most_gap_bytes(int64_t num) {
  const int64_t more = (1 << 24) + (1 << 17) + (1 << 10) + (1 << 3);
  return num < more / (kLongest - 1) ? kLongest * num : num + more + kLongest;
}

// Results that the host needs; all 0 before.
struct GapTotals {
  unsigned long long wrong;  // not 0: indices that do not ascend from 0 on, or bytes that are not those of as many gaps
  unsigned long long bytes;
};

// Writes the bytes, for which there is room for most_gap_bytes(num). `sums` has a word for each tile of indices, and one
// more, all 0 before. One launch.
void encode_gaps(const int32_t* at, int64_t num, uint8_t* bytes, unsigned long long* sums, GapTotals* totals, Stream stream);

// Writes `num` indices. `sums` has two words for each tile of bytes, and one more, all 0 before. One launch.
void decode_gaps(const uint8_t* bytes, int64_t num_bytes, int64_t num, int32_t* at, unsigned long long* sums,
                 GapTotals* totals, Stream stream);

}  // namespace sage::cuda
