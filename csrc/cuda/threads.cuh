// Sums of the numbers of a block's threads.
#pragma once

#include "device.cuh"

namespace sage::cuda {

// The sum of the numbers of the block's threads before this one; `all` is that of all. All threads must call it.
__device__ __forceinline__ unsigned long long sum_threads(unsigned long long own, unsigned long long& all) {
  __shared__ unsigned long long sums[kWarps];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  unsigned long long upto = own;
  for (int delta = 1; delta < kLanes; delta *= 2) {
    const unsigned long long before = __shfl_up_sync(kWholeWarp, upto, delta);
    if (lane >= delta) upto += before;
  }
  __syncthreads();  // the sums of a call before this one are read
  if (lane == kLanes - 1) sums[warp] = upto;
  __syncthreads();
  unsigned long long before = upto - own;
  all = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? sums[w] : 0;
    all += sums[w];
  }
  return before;
}

}  // namespace sage::cuda
