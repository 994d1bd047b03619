// Threshold selection on a GPU. Each tile compacts into its own staging memory in a single pass over the vector, a scan
// of the tiles' counts gives the output positions, and the taken elements are moved there. The order is deterministic.
#include "pass.cuh"

namespace sage::cuda {

namespace {

__global__ void select_stage(Pass pass, Stage stage) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kItems];
  bool taken[kItems];
  uint32_t ranks[kItems];
  load(pass, begin, a);
  for (int c = 0; c < kItems; ++c) {
    const int64_t i = begin + c * kThreads + threadIdx.x;
    taken[c] = i < pass.n && magnitude(a[c]) >= pass.limit;
    if (i >= pass.n) continue;
    if (pass.bins && i / kGroup % pass.every == 0) atomicAdd(pass.bins + (magnitude(a[c]) >> kBinShift), 1);
    if (pass.grad && pass.clear) pass.grad[i] = 0;
    if (pass.grad || (taken[c] && pass.keep)) pass.signal[i] = taken[c] && pass.keep ? 0 : a[c];
  }
  const uint32_t total = rank_flags(taken, ranks);
  for (int c = 0; c < kItems; ++c) {
    if (!taken[c]) continue;
    stage.values[begin + ranks[c]] = a[c];
    stage.indices[begin + ranks[c]] = static_cast<int32_t>(begin + c * kThreads + threadIdx.x);
  }
  if (threadIdx.x == 0) stage.counts[blockIdx.x] = static_cast<int32_t>(total);
}

// Runs after the scan, when the counts are the output positions of the tiles.
__global__ void select_move(Stage stage, float* values, int32_t* indices) {
  const int64_t from = static_cast<int64_t>(blockIdx.x) * kTile;
  const int32_t to = stage.counts[blockIdx.x], size = stage.counts[blockIdx.x + 1] - to;
  for (int32_t i = threadIdx.x; i < size; i += kThreads) {
    values[to + i] = stage.values[from + i];
    indices[to + i] = stage.indices[from + i];
  }
}

__global__ void count_at_least(const float* x, int64_t n, uint32_t limit, unsigned long long* count) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  bool taken[kItems];
  uint32_t ranks[kItems];
  for (int c = 0; c < kItems; ++c) {
    const int64_t i = begin + c * kThreads + threadIdx.x;
    taken[c] = i < n && magnitude(x[i]) >= limit;
  }
  const uint32_t total = rank_flags(taken, ranks);
  if (threadIdx.x == 0) atomicAdd(count, static_cast<unsigned long long>(total));
}

__global__ void count_bins(const float* x, int64_t n, int32_t* bins, int64_t every) {
  const int64_t i = thread_index() / kGroup * every * kGroup + thread_index() % kGroup;
  if (i < n) atomicAdd(bins + (magnitude(x[i]) >> kBinShift), 1);
}

}  // namespace

void select(const Pass& pass, const Stage& stage, Stream stream) {
  if (pass.n > 0) SAGE_LAUNCH(select_stage, tiles(pass.n), stream, pass, stage);
  SAGE_LAUNCH(scan, 1, stream, stage.counts, tiles(pass.n));
}

void move(const Stage& stage, int64_t n, float* values, int32_t* indices, Stream stream) {
  if (n > 0) SAGE_LAUNCH(select_move, tiles(n), stream, stage, values, indices);
}

void count_above(const float* x, int64_t n, uint32_t limit, unsigned long long* count, Stream stream) {
  if (n > 0) SAGE_LAUNCH(count_at_least, tiles(n), stream, x, n, limit, count);
}

void count_magnitudes(const float* x, int64_t n, int32_t* bins, int64_t every, Stream stream) {
  const int64_t groups = (n + every * kGroup - 1) / (every * kGroup);
  if (groups > 0) SAGE_LAUNCH(count_bins, blocks_of(groups * kGroup), stream, x, n, bins, every);
}

}  // namespace sage::cuda
