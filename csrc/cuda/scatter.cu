// The mean of W sparse vectors on a GPU. Each block sums a tile of the output in shared memory, in rank order, and
// writes it once. It uses no atomics, so all ranks get the same bits. Each rank's indices must ascend.
#include "device.cuh"

namespace sage::cuda {

namespace {

// Returns the first position in [begin, end) whose index is not below `least`.
__device__ __forceinline__ int32_t first_from(const int32_t* at, int32_t begin, int32_t end, int64_t least) {
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (at[middle] < least)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

__global__ void scatter_tiles(const float* values, const int32_t* at, Starts starts, float* out, int64_t n) {
  __shared__ float sum[kTile];
  __shared__ int32_t range[2];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile, end = begin + kTile < n ? begin + kTile : n;
  for (int i = threadIdx.x; i < kTile; i += kThreads) sum[i] = 0;
  for (int rank = 0; rank < starts.num_ranks; ++rank) {
    const int32_t first = starts.at[rank], last = starts.at[rank + 1];
    __syncthreads();
    if (threadIdx.x < 2) range[threadIdx.x] = first_from(at, first, last, threadIdx.x ? end : begin);
    __syncthreads();
    for (int32_t i = range[0] + static_cast<int32_t>(threadIdx.x); i < range[1]; i += kThreads) {
      // Equal indices are neighbours; the thread of the first one adds all of them, in their order.
      if (i > first && at[i] == at[i - 1]) continue;
      const int64_t place = at[i] - begin;
      if (place < 0 || place >= kTile) continue;  // only where the indices do not ascend, as they must
      for (int32_t j = i; j < last && at[j] == at[i]; ++j) sum[place] += values[j];
    }
  }
  __syncthreads();
  const float num_ranks = static_cast<float>(starts.num_ranks);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) out[i] = sum[i - begin] / num_ranks;
}

__global__ void clear_places(float* out, int64_t n, const int32_t* at, int64_t num) {
  const int64_t i = thread_index();
  if (i < num && at[i] >= 0 && at[i] < n) out[at[i]] = 0;
}

}  // namespace

void scatter_mean(const float* values, const int32_t* at, const Starts& starts, float* out, int64_t n, Stream stream) {
  if (n > 0) SAGE_LAUNCH(scatter_tiles, tiles(n), stream, values, at, starts, out, n);
}

void clear(float* out, int64_t n, const int32_t* at, int64_t num, Stream stream) {
  if (num > 0) SAGE_LAUNCH(clear_places, blocks_of(num), stream, out, n, at, num);
}

}  // namespace sage::cuda
