// The random bits of a tile of a vector, whose positions are in runs.
#pragma once

#include "groups.cuh"
#include "philox.cuh"

namespace sage::cuda {

// The random bits of a tile's elements [begin, end): of each run of positions, from the tiles of random bits that it
// overlaps.
__device__ __forceinline__ void draw_tile(uint64_t key, const Positions& x, int64_t begin, int64_t end,
                                          uint16_t* random) {
  for (int32_t run = group_of(x.starts, 0, x.num_runs - 1, begin); run < x.num_runs && x.starts[run] < end; ++run) {
    const int64_t start = x.starts[run], next = run + 1 < x.num_runs ? x.starts[run + 1] : end;
    const int low = static_cast<int>(start > begin ? start - begin : 0);
    const int high = static_cast<int>((next < end ? next : end) - begin);
    const int64_t first = static_cast<int64_t>(x.high[run]) << 32 | static_cast<uint32_t>(x.low[run]);
    const int64_t position = first + (begin + low - start), tile = position / kRandomTile;
    const int skip = static_cast<int>(position % kRandomTile);
    const int num_tiles = (skip + high - low + kRandomTile - 1) / kRandomTile;
    for (int q = threadIdx.x; q < num_tiles * kTileCounters; q += kThreads) {
      uint16_t halves[8];
      philox(key, static_cast<uint64_t>(tile * kTileCounters + q), halves);
      const int at = low - skip + q / kTileCounters * kRandomTile + q % kTileCounters;
      for (int h = 0; h < 8; ++h)
        if (at + 16 * h >= low && at + 16 * h < high) random[at + 16 * h] = halves[h];
    }
  }
  __syncthreads();
}

}  // namespace sage::cuda
