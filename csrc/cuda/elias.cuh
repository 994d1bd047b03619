// Elias delta codes on the device and maxima of a block's threads.
#pragma once

#include "elias.h"
#include "lookback.cuh"
#include "segments.cuh"
#include "threads.cuh"

namespace sage::cuda {

__device__ __forceinline__ int bit_length(uint32_t x) { return 32 - __clz(static_cast<int>(x)); }

// Bits of the code of x, from 1 to 2^31 - 1.
__device__ __forceinline__ int code_width(uint32_t x) {
  const int length = bit_length(x);
  return 2 * (bit_length(static_cast<uint32_t>(length)) - 1) + length;
}

__device__ __forceinline__ unsigned long long elias_code(uint32_t x) {
  const int length = bit_length(x);
  return static_cast<unsigned long long>(length) << (length - 1) | (x ^ 1u << (length - 1));
}

// Reads the code that 64 bits begin with. Its width is 0 if no number below 2^31 has it.
struct Code {
  int width = 0, zeros = 0, length = 0;

  __device__ __forceinline__ explicit Code(unsigned long long bits) {
    zeros = __clzll(static_cast<long long>(bits | 1));
    if (zeros > 4) return;
    length = static_cast<int>(bits >> (63 - 2 * zeros));
    width = 2 * zeros + length;
  }

  __device__ __forceinline__ uint32_t value(unsigned long long bits) const {
    const unsigned long long low = length > 1 ? bits << (2 * zeros + 1) >> (65 - length) : 0;
    return 1u << (length - 1) | static_cast<uint32_t>(low);
  }
};

// The largest of the numbers of the block's threads before this one; `all` is that of all. All threads must call it.
__device__ __forceinline__ int32_t largest_before(int32_t own, int32_t& all) {
  __shared__ int32_t most[kWarps];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  int32_t upto = own;
  for (int delta = 1; delta < kLanes; delta *= 2) {
    const int32_t before = __shfl_up_sync(kWholeWarp, upto, delta);
    if (lane >= delta) upto = upto > before ? upto : before;
  }
  int32_t before = __shfl_up_sync(kWholeWarp, upto, 1);
  if (lane == 0) before = 0;
  if (lane == kLanes - 1) most[warp] = upto;
  __syncthreads();
  all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before = before > most[w] ? before : most[w];
    all = all > most[w] ? all : most[w];
  }
  return before;
}

// As sum_before in lookback.cuh, of the last number that is not 0: for a tile that has one, its own. `none` is returned if no
// tile of [first, tile) has one. Numbers are 32 bits; in lane 0 of the warp.
__device__ __forceinline__ uint32_t last_before(volatile unsigned long long* lasts, int32_t first, int32_t tile,
                                                uint32_t own, uint32_t none) {
  const int lane = threadIdx.x % kLanes;
  const bool known = own > 0 || tile == first;
  if (lane == 0) lasts[tile] = known ? kUpTo | (own > 0 ? own : none) : kOwn;
  uint32_t found = none;
  for (int32_t end = tile; end > first; end -= kLanes) {
    const int32_t at = end - 1 - lane;
    unsigned long long seen = kUpTo | none;
    if (at >= first)
      for (seen = lasts[at]; seen < kOwn; seen = lasts[at]) SAGE_WAIT();
    const unsigned up_to = __ballot_sync(kWholeWarp, seen >= kUpTo);
    if (up_to == 0) continue;
    found = __shfl_sync(kWholeWarp, static_cast<uint32_t>(seen), __popc((up_to & (0u - up_to)) - 1));
    break;
  }
  if (lane == 0 && !known) lasts[tile] = kUpTo | found;
  return found;
}

}  // namespace sage::cuda
