// Counter-based random bits on a GPU: the same numbers as on the CPU, for every cut of the vector.
#include "philox.cuh"

namespace sage::cuda {

namespace {

// Each thread computes one counter, which has the bits of 8 elements; 16 threads write 16 consecutive elements.
__global__ void random_bits_kernel(uint64_t key, int64_t first, int64_t n, int32_t* out) {
  const int64_t number = first / kRandomTile * kTileCounters + thread_index();
  uint16_t halves[8];
  philox(key, static_cast<uint64_t>(number), halves);
  for (int h = 0; h < 8; ++h) {
    const int64_t i = number / kTileCounters * kRandomTile + 16 * h + number % kTileCounters - first;
    if (i >= 0 && i < n) out[i] = halves[h];
  }
}

}  // namespace

void random_bits(uint64_t key, int64_t first, int64_t n, int32_t* out, Stream stream) {
  const int64_t num_tiles = (first + n + kRandomTile - 1) / kRandomTile - first / kRandomTile;
  if (n > 0) SAGE_LAUNCH(random_bits_kernel, blocks_of(num_tiles * kTileCounters), stream, key, first, n, out);
}

}  // namespace sage::cuda
