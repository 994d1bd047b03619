// Loads a tile of a pass into a block's registers.
#pragma once

#include "device.cuh"

namespace sage::cuda {

// Loads this thread's elements of its block's tile, with the gradient added; elements beyond the end are 0.
__device__ __forceinline__ void load(const Pass& pass, int64_t begin, float (&a)[kItems]) {
  for (int c = 0; c < kItems; ++c) {
    const int64_t i = begin + c * kThreads + threadIdx.x;
    a[c] = i < pass.n ? pass.signal[i] : 0;
  }
  if (!pass.grad) return;
  for (int c = 0; c < kItems; ++c) {
    const int64_t i = begin + c * kThreads + threadIdx.x;
    if (i < pass.n) a[c] += pass.grad[i];
  }
}

}  // namespace sage::cuda
