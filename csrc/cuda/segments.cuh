// Tiles of the groups of a vector, in fours of 16 bytes.
#pragma once

#include "groups.cuh"
#include "segments.h"

namespace sage::cuda {

// A tile of one group.
struct Segment {
  int32_t group = 0;
  int64_t tile = 0;           // first element of the tile, a multiple of 4
  int low = 0, high = kTile;  // the group's part of the tile

  Segment() = default;

  __device__ __forceinline__ Segment(const Segments& cut, int32_t number)
      : group(group_of(cut.first_tile, 0, cut.num - 1, number)) {
    const int64_t begin = cut.bounds[group], end = cut.bounds[group + 1];
    tile = begin / 4 * 4 + static_cast<int64_t>(number - cut.first_tile[group]) * kTile;
    low = begin > tile ? static_cast<int>(begin - tile) : 0;
    high = end < tile + kTile ? static_cast<int>(end - tile) : kTile;
  }

  // Of an element of the tile.
  __device__ __forceinline__ bool has(int at) const {
    return static_cast<unsigned>(at - low) < static_cast<unsigned>(high - low);
  }
  __device__ __forceinline__ bool is_whole() const { return high - low == kTile; }
};

// The first element of this thread's quad c, in its tile.
__device__ __forceinline__ int quad_of(int c) { return 4 * (c * kThreads + static_cast<int>(threadIdx.x)); }

// Loads this thread's quads of a tile; elements of other groups are 0. The branch is the same for the whole block, and all
// reads of a whole tile are in flight at once.
__device__ __forceinline__ void load_tile(const float* x, const Segment& own, float (&a)[kQuads][4]) {
  if (own.is_whole() && is_aligned(x)) {
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c) {
      const float4 all = *reinterpret_cast<const float4*>(x + own.tile + quad_of(c));
      a[c][0] = all.x, a[c][1] = all.y, a[c][2] = all.z, a[c][3] = all.w;
    }
    return;
  }
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const int at = quad_of(c);
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) a[c][j] = own.has(at + j) ? x[own.tile + at + j] : 0;
  }
}

__device__ __forceinline__ void store_tile(float* x, const Segment& own, const float (&a)[kQuads][4]) {
  if (own.is_whole() && is_aligned(x)) {
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c)
      *reinterpret_cast<float4*>(x + own.tile + quad_of(c)) = float4{a[c][0], a[c][1], a[c][2], a[c][3]};
    return;
  }
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const int at = quad_of(c);
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j)
      if (own.has(at + j)) x[own.tile + at + j] = a[c][j];
  }
}

// Loads a tile's signal, with the gradient added and stored, where there is one.
__device__ __forceinline__ void add_tile(float* signal, float* grad, bool clear, const Segment& own,
                                         float (&a)[kQuads][4]) {
  load_tile(signal, own, a);
  if (!grad) return;
  float g[kQuads][4];
  load_tile(grad, own, g);
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) a[c][j] += g[c][j], g[c][j] = 0;
  }
  store_tile(signal, own, a);
  if (clear) store_tile(grad, own, g);
}

// The sum of a block's numbers, two of 16 bits in each word, before each quad, in the order of the elements; returns that
// of all. All threads must call it.
__device__ __forceinline__ uint32_t sum_quads(const uint32_t (&own)[kQuads], uint32_t (&before)[kQuads]) {
  static_assert(kQuads * kWarps == kLanes);
  __shared__ uint32_t sums[kLanes + 1];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const uint32_t upto = warp_sum(own[c]);
    before[c] = upto - own[c];
    if (lane == kLanes - 1) sums[c * kWarps + warp] = upto;
  }
  __syncthreads();
  if (warp == 0) {
    const uint32_t each = sums[lane], upto = warp_sum(each);
    sums[lane] = upto - each;
    if (lane == kLanes - 1) sums[kLanes] = upto;
  }
  __syncthreads();
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) before[c] += sums[c * kWarps + warp];
  return sums[kLanes];
}

// Calls `write` with the quad, its element and the place in the output of each element of this thread that is taken, which
// `taken` has a bit for: they follow those of the tiles and of the quads before, in the order of the elements.
template <class Write>
__device__ __forceinline__ void each_taken(uint32_t taken, unsigned long long tiles_before, const uint32_t (&before)[kQuads],
                                           const Write& write) {
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    int64_t to = static_cast<int64_t>(tiles_before) + before[c];
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j)
      if (taken >> (4 * c + j) & 1) write(c, j, to++);
  }
}

}  // namespace sage::cuda
