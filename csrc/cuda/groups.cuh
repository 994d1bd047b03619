// Groups and buckets on the device, and elements in fours.
#pragma once

#include "cut.h"
#include "device.cuh"

namespace sage::cuda {

constexpr int kQuads = kItems / 4;  // of a thread

// Returns the last of [low, high] that begins at or before i.
__device__ __forceinline__ int32_t group_of(const int32_t* begins, int32_t low, int32_t high, int64_t i) {
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (begins[middle] <= i)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The groups of a tile's elements [begin, end), and the bucket of each element.
struct Groups {
  const Cut& cut;
  int32_t low, high;

  __device__ Groups(const Cut& of, int64_t begin, int64_t end)
      : cut(of),
        low(group_of(of.bounds, 0, of.num_groups - 1, begin)),
        high(group_of(of.bounds, low, of.num_groups - 1, end - 1)) {}

  // Finds the buckets of elements i to i + 3, of those before n.
  __device__ void buckets(int64_t i, int64_t n, int32_t (&found)[4]) const {
    int32_t g = group_of(cut.bounds, low, high, i);
    for (int j = 0; j < 4; ++j) {
      if (i + j < n)
        while (cut.bounds[g + 1] <= i + j) ++g;
      const uint32_t in_group = static_cast<uint32_t>(i + j - cut.bounds[g]);
      found[j] = i + j >= n ? 0 : cut.bucket ? cut.first_bucket[g] + static_cast<int32_t>(in_group / cut.bucket) : g;
    }
  }
};

__device__ __forceinline__ bool is_aligned(const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; }

// The first element of this thread's quad c.
__device__ __forceinline__ int64_t quad_at(int64_t begin, int c) { return begin + 4 * (c * kThreads + threadIdx.x); }

// Loads elements i to i + 3, i being a multiple of 4; those outside of [begin, end) are 0.
__device__ __forceinline__ void load_within(const float* x, int64_t i, int64_t begin, int64_t end, float (&a)[4]) {
  if (i >= begin && i + 4 <= end && is_aligned(x)) {
    const float4 all = *reinterpret_cast<const float4*>(x + i);
    a[0] = all.x, a[1] = all.y, a[2] = all.z, a[3] = all.w;
    return;
  }
  for (int j = 0; j < 4; ++j) a[j] = i + j >= begin && i + j < end ? x[i + j] : 0;
}

__device__ __forceinline__ void store_within(float* x, int64_t i, int64_t begin, int64_t end, const float (&a)[4]) {
  if (i >= begin && i + 4 <= end && is_aligned(x)) {
    *reinterpret_cast<float4*>(x + i) = float4{a[0], a[1], a[2], a[3]};
    return;
  }
  for (int j = 0; j < 4; ++j)
    if (i + j >= begin && i + j < end) x[i + j] = a[j];
}

// The same of a vector of n elements.
__device__ __forceinline__ void load_quad(const float* x, int64_t i, int64_t n, float (&a)[4]) { load_within(x, i, 0, n, a); }

__device__ __forceinline__ void store_quad(float* x, int64_t i, int64_t n, const float (&a)[4]) {
  store_within(x, i, 0, n, a);
}

__device__ __forceinline__ float finite_or_zero(float x) { return magnitude(x) < 0x7f800000u ? x : 0; }

}  // namespace sage::cuda
