// Sums over the preceding tiles in the pass that computes each tile's own, without a second launch: decoupled look-back
// (Merrill and Garland, Single-pass Parallel Prefix Scan with Decoupled Look-back, 2016).
//
// Each tile has a word, 0 before the launch: two bits for its state, and 62 for a sum. A tile writes its own sum at once,
// reads the words before it until one has the sum of all tiles up to it, and then writes its own such sum. The words are
// all that tiles exchange, and each is written and read whole, so no fence is needed.
#pragma once

#include "device.cuh"

namespace sage::cuda {

constexpr unsigned long long kOwn = 1ull << 62, kUpTo = 2ull << 62, kSumBits = kOwn - 1;

// Returns the number of this block's tile, in the order in which blocks begin: a tile waits for running blocks only.
// `ticket` is 0 before the launch. All threads must call it.
__device__ __forceinline__ int32_t next_tile(unsigned long long* ticket) {
  __shared__ int32_t number;
  if (threadIdx.x == 0) number = static_cast<int32_t>(atomicAdd(ticket, 1ull));
  __syncthreads();
  return number;
}

// Returns the sum of the tiles [first, tile), in lane 0 of the one warp that calls it; `own` is that of this tile.
__device__ __forceinline__ unsigned long long sum_before(volatile unsigned long long* sums, int32_t first, int32_t tile,
                                                         unsigned long long own) {
  const int lane = threadIdx.x % kLanes;
  if (lane == 0) sums[tile] = (tile == first ? kUpTo : kOwn) | own;
  unsigned long long before = 0;
  for (int32_t end = tile; end > first; end -= kLanes) {
    const int32_t at = end - 1 - lane;
    unsigned long long seen = kUpTo;
    if (at >= first)
      for (seen = sums[at]; seen < kOwn; seen = sums[at]) SAGE_WAIT();
    const unsigned up_to = __ballot_sync(kWholeWarp, seen >= kUpTo);
    // The lanes up to the first with the sum of all tiles up to it.
    const int last = up_to ? __popc((up_to & (0u - up_to)) - 1) : kLanes - 1;
    unsigned long long sum = lane <= last ? seen & kSumBits : 0;
    for (int half = kLanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(kWholeWarp, sum, half);
    before += sum;
    if (up_to) break;
  }
  if (lane == 0 && tile != first) sums[tile] = kUpTo | (before + own);
  return before;
}

}  // namespace sage::cuda
