// AdaComp on a GPU: the largest magnitude of each bin in the pass that adds the gradient, then the elements near it, compacted
// in the same pass. Bins of any length: a tile reduces those that it has a part of in shared memory.
#include "bins.cuh"
#include "lookback.cuh"
#include "segments.cuh"

namespace sage::cuda {

namespace {

__global__ void add_and_find_largest(Layers layers, Near near, uint32_t* most) {
  __shared__ uint32_t here[kTile];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile, end = begin + kTile < near.n ? begin + kTile : near.n;
  const TileBins bins(layers, begin, end);
  float a[kQuads][4], g[kQuads][4];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) load_quad(near.signal, quad_at(begin, c), near.n, a[c]);
  if (near.grad) {
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c) load_quad(near.grad, quad_at(begin, c), near.n, g[c]);
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) a[c][j] += g[c][j];
      store_quad(near.signal, quad_at(begin, c), near.n, a[c]);
    }
  }
  for (int b = threadIdx.x; b < bins.size(); b += kThreads) here[b] = 0;
  __syncthreads();
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c);
    int bin[4] = {-1, -1, -1, -1};
    if (i < near.n) bins.of(i, near.n, bin);
    const auto first = __shfl_sync(kWholeWarp, static_cast<uint32_t>(bin[0]), 0);
    const unsigned alike = __ballot_sync(kWholeWarp, static_cast<uint32_t>(bin[3]) == first);
    if (alike == kWholeWarp && i < near.n) {  // one bin has all elements of the warp
      uint32_t largest = 0;
      for (int j = 0; j < 4; ++j) largest = largest > magnitude(a[c][j]) ? largest : magnitude(a[c][j]);
      for (int half = kLanes / 2; half > 0; half /= 2) {
        const uint32_t other = __shfl_down_sync(kWholeWarp, largest, half);
        largest = largest > other ? largest : other;
      }
      if (threadIdx.x % kLanes == 0) atomicMax(here + bin[0], largest);
    } else if (i < near.n) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j)
        if (i + j < near.n) atomicMax(here + bin[j], magnitude(a[c][j]));
    }
  }
  __syncthreads();
  for (int b = threadIdx.x; b < bins.size(); b += kThreads) atomicMax(most + bins.first.number + b, here[b]);
}

__global__ void take_near_tiles(Layers layers, Near near, const uint32_t* most, int32_t* counts, unsigned long long* sums,
                                float* values, int32_t* indices) {
  __shared__ int32_t here[kTile];
  __shared__ unsigned long long tiles_before;
  const int32_t number = next_tile(sums + tiles_of(near.n));
  const int64_t begin = static_cast<int64_t>(number) * kTile, end = begin + kTile < near.n ? begin + kTile : near.n;
  const TileBins bins(layers, begin, end);
  float a[kQuads][4], heavy[kQuads][4];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) load_quad(near.signal, quad_at(begin, c), near.n, a[c]);
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    if (near.grad) load_quad(near.grad, quad_at(begin, c), near.n, heavy[c]);
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) heavy[c][j] = a[c][j] + near.weight * (near.grad ? heavy[c][j] : a[c][j]);
  }
  for (int b = threadIdx.x; b < bins.size(); b += kThreads) here[b] = 0;
  __syncthreads();
  uint32_t sizes[kQuads], before[kQuads], taken = 0;  // a bit for each element
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c);
    sizes[c] = 0;
    if (i >= near.n) continue;
    int bin[4];
    bins.of(i, near.n, bin);
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint32_t largest = most[bins.first.number + bin[j]];
      // A comparison with NaN takes the element.
      const uint32_t limit = largest > 0x7f800000u ? 0 : largest;
      if (i + j >= near.n || magnitude(heavy[c][j]) < limit || magnitude(a[c][j]) == 0) continue;
      taken |= 1u << (4 * c + j);
      ++sizes[c];
      atomicAdd(here + bin[j], 1);
    }
  }
  const uint32_t all = sum_quads(sizes, before);
  if (threadIdx.x < kLanes) {
    const unsigned long long found = sum_before(sums, 0, number, all);
    if (threadIdx.x == 0) tiles_before = found;
  }
  __syncthreads();
  if (all == 0) return;
  for (int b = threadIdx.x; b < bins.size(); b += kThreads)
    if (here[b]) atomicAdd(counts + bins.first.number + b, here[b]);
  each_taken(taken, tiles_before, before, [&](int c, int j, int64_t to) {
    const int64_t i = quad_at(begin, c) + j;
    const float value = near.heavy ? heavy[c][j] : a[c][j];
    values[to] = value;
    indices[to] = static_cast<int32_t>(i);
    if (near.keep) near.signal[i] = finite_or_zero(a[c][j] - value);
  });
}

}  // namespace

void take_near(const Layers& layers, const Near& near, uint32_t* most, int32_t* counts, unsigned long long* sums,
               float* values, int32_t* indices, Stream stream) {
  if (near.n == 0) return;
  SAGE_LAUNCH(add_and_find_largest, tiles(near.n), stream, layers, near, most);
  SAGE_LAUNCH(take_near_tiles, tiles(near.n), stream, layers, near, most, counts, sums, values, indices);
}

}  // namespace sage::cuda
