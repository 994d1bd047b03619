// The randomised Walsh-Hadamard transform on a GPU, with the bits of cpu/hadamard.h: one block for each bucket.
#include "groups.cuh"
#include "philox.cuh"

namespace sage::cuda {

namespace {

// The length of the part that element i of a bucket of n elements is in, and its first element.
__device__ __forceinline__ int part_at(int n, int i, int* first) {
  int begin = 0, length = 1;
  while (2 * length <= n) length *= 2;
  while (begin + length <= i) {
    begin += length;
    for (length = 1; 2 * length <= n - begin;) length *= 2;
  }
  *first = begin;
  return length;
}

__global__ void hadamard_kernel(Cut cut, Hadamard x) {
  __shared__ float a[kMostTransformed];
  __shared__ uint16_t signs[kMostTransformed / 16];
  const int bucket = static_cast<int>(blockIdx.x), g = group_of(cut.first_bucket, 0, cut.num_groups - 1, bucket);
  const int64_t begin = cut.bounds[g] + static_cast<int64_t>(bucket - cut.first_bucket[g]) * cut.bucket;
  const int64_t behind = cut.bounds[g + 1] - begin;
  const int n = static_cast<int>(behind < cut.bucket ? behind : cut.bucket), num = (n + 15) / 16;
  const int64_t half = static_cast<int64_t>(bucket) * (cut.bucket / 16), tile = half / kRandomTile;
  const int num_counters = static_cast<int>((half + num + kRandomTile - 1) / kRandomTile - tile) * kTileCounters;
  for (int q = threadIdx.x; q < num_counters; q += kThreads) {
    const int64_t number = tile * kTileCounters + q;
    uint16_t halves[8];
    philox(x.key, static_cast<uint64_t>(number), halves);
    for (int h = 0; h < 8; ++h) {
      const int64_t at = number / kTileCounters * kRandomTile + 16 * h + number % kTileCounters - half;
      if (at >= 0 && at < num) signs[at] = halves[h];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const float own = x.x[begin + i];
    a[i] = !x.inverse && signs[i / 16] >> i % 16 & 1 ? -own : own;
  }
  for (int first = 0, length; first < n; first += length) {
    length = part_at(n, first, &first);
    for (int apart = 1; apart < length; apart *= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < length / 2; i += kThreads) {
        const int at = first + i / apart * 2 * apart + i % apart;
        const float low = a[at], high = a[at + apart];
        a[at] = low + high;
        a[at + apart] = low - high;
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kThreads) {
    int first;
    const float own = a[i] * static_cast<float>(1 / sqrt(static_cast<double>(part_at(n, i, &first))));
    x.x[begin + i] = x.inverse && signs[i / 16] >> i % 16 & 1 ? -own : own;
  }
}

}  // namespace

void hadamard(const Cut& cut, const Hadamard& x, Stream stream) {
  if (cut.num_buckets > 0) SAGE_LAUNCH(hadamard_kernel, cut.num_buckets, stream, cut, x);
}

}  // namespace sage::cuda
