// Common parts of the CUDA kernels. The kernels do not depend on torch, and use only the part of CUDA that `emulate.h`
// implements: nvcc and g++ compile the same source.
#pragma once

#include "kernels.h"

#if defined(__CUDACC__)
#define SAGE_UNROLL _Pragma("unroll")  // so that an array stays in registers
#define SAGE_WAIT() static_cast<void>(0)  // for a word that another block writes
#define SAGE_LAUNCH(kernel, blocks, stream, ...) kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(__VA_ARGS__)
#else
#define SAGE_UNROLL
#include "emulate.h"
#define SAGE_WAIT() emulate::die("a block waits for one that begins later")
#define SAGE_LAUNCH(kernel, blocks, stream, ...) \
  emulate::launch(static_cast<unsigned>(blocks), kThreads, ((void)stream, [&] { kernel(__VA_ARGS__); }))
#endif

namespace sage::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;
constexpr uint32_t kMagnitude = 0x7fffffffu;

inline int64_t blocks_of(int64_t n) { return (n + kThreads - 1) / kThreads; }

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__device__ __forceinline__ uint32_t magnitude(float x) { return bits_of(x) & kMagnitude; }

__device__ __forceinline__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

__device__ __forceinline__ int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// Returns the inclusive prefix sum of a warp's values at this lane.
__device__ __forceinline__ uint32_t warp_sum(uint32_t value) {
  for (int delta = 1; delta < kLanes; delta *= 2) {
    const uint32_t before = __shfl_up_sync(kWholeWarp, value, delta);
    if (static_cast<int>(threadIdx.x) % kLanes >= delta) value += before;
  }
  return value;
}

// Returns the sum of the values of the block's threads before this one, and of all of them in `total`. All threads of the
// block must call it, with a barrier between two calls.
__device__ __forceinline__ uint32_t block_sum_before(uint32_t value, uint32_t& total) {
  __shared__ uint32_t sums[kWarps];
  const uint32_t upto = warp_sum(value);
  const int warp = threadIdx.x / kLanes;
  if (threadIdx.x % kLanes == kLanes - 1) sums[warp] = upto;
  __syncthreads();
  uint32_t before = upto - value;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? sums[w] : 0;
    total += sums[w];
  }
  return before;
}

// Returns the largest of a warp's values in all of its lanes.
__device__ __forceinline__ uint32_t warp_most(uint32_t value) {
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const uint32_t other = __shfl_xor_sync(kWholeWarp, value, distance);
    value = value > other ? value : other;
  }
  return value;
}

// The same of a block, all threads of which must call it, once.
__device__ __forceinline__ uint32_t block_most(uint32_t value) {
  __shared__ uint32_t most[kWarps];
  value = warp_most(value);
  if (threadIdx.x % kLanes == 0) most[threadIdx.x / kLanes] = value;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) value = most[w] > value ? most[w] : value;
  return value;
}

// Computes, for each of this thread's flags, how many flags before it are set in the tile. Item c of thread t is element
// c·kThreads + t, so that reads coalesce. All threads of the block must call it; returns the number set in the tile.
__device__ __forceinline__ uint32_t rank_flags(const bool (&flags)[kItems], uint32_t (&ranks)[kItems]) {
  __shared__ uint32_t counts[kItems * kWarps + 1];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  for (int c = 0; c < kItems; ++c) {
    const unsigned set = __ballot_sync(kWholeWarp, flags[c]);
    ranks[c] = __popc(set & ((1u << lane) - 1));
    if (lane == 0) counts[c * kWarps + warp] = __popc(set);
  }
  __syncthreads();
  constexpr int kEach = kItems * kWarps / kLanes;
  if (warp == 0) {
    uint32_t own = 0;
    for (int i = lane * kEach; i < (lane + 1) * kEach; ++i) own += counts[i];
    const uint32_t upto = warp_sum(own);
    uint32_t before = upto - own;
    for (int i = lane * kEach; i < (lane + 1) * kEach; ++i) {
      const uint32_t count = counts[i];
      counts[i] = before;
      before += count;
    }
    if (lane == kLanes - 1) counts[kItems * kWarps] = upto;
  }
  __syncthreads();
  for (int c = 0; c < kItems; ++c) ranks[c] += counts[c * kWarps + warp];
  // No barrier is needed here: before the first barrier of the next call, a warp overwrites only what it alone reads.
  return counts[kItems * kWarps];
}

// Exclusive prefix sums in place, with the total after the last element; runs in one block.
[[maybe_unused]] static __global__ void scan(int32_t* counts, int64_t n) {
  __shared__ uint32_t sums[kWarps];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  uint32_t before = 0;
  for (int64_t begin = 0; begin < n; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const uint32_t own = i < n ? counts[i] : 0, upto = warp_sum(own);
    if (lane == kLanes - 1) sums[warp] = upto;
    __syncthreads();
    uint32_t others = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      others += w < warp ? sums[w] : 0;
      all += sums[w];
    }
    if (i < n) counts[i] = static_cast<int32_t>(before + others + upto - own);
    before += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[n] = static_cast<int32_t>(before);
}

}  // namespace sage::cuda
