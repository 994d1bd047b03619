// Threshold selection on a GPU, of each group of a vector by its own threshold, in a single pass: where a tile's elements belong
// depends on the number taken in the tiles before, a sum by look-back. The order is that of the elements.
#include "lookback.cuh"
#include "segments.cuh"

namespace sage::cuda {

namespace {

// Writes what is left in a tile of signal, and in that of the gradient; `taken` has a bit for each of this thread's elements.
__device__ __forceinline__ void leave(const Pass& pass, const Segment& own, const float (&a)[kQuads][4], uint32_t taken) {
  if (pass.grad) {
    float left[kQuads][4];
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) left[c][j] = pass.keep && (taken >> (4 * c + j) & 1) ? 0 : a[c][j];
    }
    store_tile(pass.signal, own, left);
    return;
  }
  if (!pass.keep) return;
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j)
      if (taken >> (4 * c + j) & 1) pass.signal[own.tile + quad_of(c) + j] = 0;
  }
}

__global__ void select_tiles(Segments cut, Pass pass, unsigned long long* counts, unsigned long long* sums, float* values,
                             int32_t* indices) {
  __shared__ unsigned long long tiles_before;
  const int32_t number = next_tile(sums + cut.num_tiles);
  const Segment own(cut, number);
  const auto limit = static_cast<uint32_t>(cut.wanted[own.group]);
  float a[kQuads][4];
  load_tile(pass.signal, own, a);
  if (pass.grad) {
    float g[kQuads][4];
    load_tile(pass.grad, own, g);
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) a[c][j] += g[c][j], g[c][j] = 0;
    }
    if (pass.clear) store_tile(pass.grad, own, g);
  }
  uint32_t taken = 0, sizes[kQuads], before[kQuads];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    sizes[c] = 0;
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (!own.has(quad_of(c) + j)) continue;
      const uint32_t bits = magnitude(a[c][j]);
      if (pass.bins && (own.tile + quad_of(c)) / kGroup % pass.every == 0) atomicAdd(pass.bins + (bits >> kBinShift), 1);
      if (bits < limit) continue;
      taken |= 1u << (4 * c + j);
      ++sizes[c];
    }
  }
  const uint32_t all = sum_quads(sizes, before);
  if (threadIdx.x < kLanes) {
    const unsigned long long sum = sum_before(sums, 0, number, all);
    if (threadIdx.x == 0) {
      tiles_before = sum;
      if (counts && all) atomicAdd(counts + own.group, static_cast<unsigned long long>(all));
    }
  }
  leave(pass, own, a, taken);
  __syncthreads();
  each_taken(taken, tiles_before, before, [&](int c, int j, int64_t to) {
    values[to] = a[c][j];
    indices[to] = static_cast<int32_t>(own.tile + quad_of(c) + j);
  });
}

__global__ void count_at_least(const float* x, int64_t n, uint32_t limit, unsigned long long* count) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kQuads][4];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) load_quad(x, quad_at(begin, c), n, a[c]);
  uint32_t own = 0, total;
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) own += quad_at(begin, c) + j < n && magnitude(a[c][j]) >= limit;
  }
  block_sum_before(own, total);
  if (threadIdx.x == 0) atomicAdd(count, static_cast<unsigned long long>(total));
}

__global__ void count_bins(const float* x, int64_t n, int32_t* bins, int64_t every) {
  const int64_t i = thread_index() / kGroup * every * kGroup + thread_index() % kGroup;
  if (i < n) atomicAdd(bins + (magnitude(x[i]) >> kBinShift), 1);
}

}  // namespace

void select(const Segments& cut, const Pass& pass, unsigned long long* counts, unsigned long long* sums, float* values,
            int32_t* indices, Stream stream) {
  if (cut.num_tiles > 0) SAGE_LAUNCH(select_tiles, cut.num_tiles, stream, cut, pass, counts, sums, values, indices);
}

void count_above(const float* x, int64_t n, uint32_t limit, unsigned long long* count, Stream stream) {
  if (n > 0) SAGE_LAUNCH(count_at_least, tiles(n), stream, x, n, limit, count);
}

void count_magnitudes(const float* x, int64_t n, int32_t* bins, int64_t every, Stream stream) {
  const int64_t groups = (n + every * kGroup - 1) / (every * kGroup);
  if (groups > 0) SAGE_LAUNCH(count_bins, blocks_of(groups * kGroup), stream, x, n, bins, every);
}

}  // namespace sage::cuda
