// The largest elements of each chunk on a GPU, with the result of cpu/chunks.h: one block for each chunk, in one launch.
#include "device.cuh"

namespace sage::cuda {

namespace {

static_assert(kMostInChunk == kTile);  // a thread has kItems elements of a chunk

// The index in the vector of an element of a chunk.
__device__ __forceinline__ int64_t element(const Chunk& chunk, int at) {
  return chunk.first + static_cast<int64_t>(at / kRowInChunk) * chunk.stride + at % kRowInChunk;
}

// Whether the elements of a chunk are in the vector and k of them can be taken.
__device__ __forceinline__ bool is_within(const Chunk& chunk, int32_t k, int64_t n) {
  if (chunk.first < 0 || chunk.stride < kRowInChunk || chunk.length < 1 || chunk.length > kMostInChunk) return false;
  return k <= chunk.length && element(chunk, chunk.length - 1) < n;
}

__global__ void take_largest(Chunks x) {
  const int64_t p = blockIdx.x;
  const Chunk chunk = x.chunks[p];
  const int32_t stop = p + 1 < x.num_chunks ? x.chunks[p + 1].start : x.num;
  if (chunk.start < 0 || stop > x.num || stop <= chunk.start) return;
  const int32_t k = stop - chunk.start;
  const auto wanted = static_cast<uint32_t>(k);
  float* values = x.values + chunk.start;
  int32_t* positions = x.positions + chunk.start;
  if (!is_within(chunk, k, x.n)) {
    for (int32_t i = threadIdx.x; i < k; i += kThreads) {
      values[i] = float_of(0x7fc00000u);
      positions[i] = -1;
    }
    return;
  }
  uint32_t bits[kItems];  // of positions beyond the end 0, which are taken last
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    const int at = c * kThreads + static_cast<int>(threadIdx.x);
    bits[c] = at < chunk.length ? magnitude(x.x[element(chunk, at)]) : 0;
  }
  // The k-th largest, bit by bit, or a limit that exactly k are at or above.
  uint32_t limit = 0, at_least = kTile;
  for (int bit = 30; bit >= 0; --bit) {
    const uint32_t higher = limit | 1u << bit;
    uint32_t own = 0, all;
    SAGE_UNROLL
    for (int c = 0; c < kItems; ++c) own += bits[c] >= higher;
    block_sum_before(own, all);
    __syncthreads();
    if (all < wanted) continue;
    limit = higher;
    at_least = all;
    if (all == wanted) break;
  }
  bool is[kItems];
  uint32_t before[kItems];
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) is[c] = bits[c] == limit;
  const uint32_t above = at_least - rank_flags(is, before);
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) is[c] = bits[c] > limit || (is[c] && before[c] < wanted - above);
  rank_flags(is, before);
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    if (!is[c]) continue;
    const int at = c * kThreads + static_cast<int>(threadIdx.x);
    values[before[c]] = x.x[element(chunk, at)];
    positions[before[c]] = at;
  }
}

}  // namespace

void largest_in_chunks(const Chunks& x, Stream stream) {
  if (x.num_chunks > 0) SAGE_LAUNCH(take_largest, x.num_chunks, stream, x);
}

}  // namespace sage::cuda
