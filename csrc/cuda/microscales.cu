// The largest magnitude of each block on a GPU, with the bits of cpu/microscales.h.
#include "groups.cuh"

namespace sage::cuda {

namespace {

// kTeam threads, of one warp, read a block. The quads begin at multiples of 4 of the vector, so that accesses are of 16
// bytes wherever a block begins.
template <int kTeam>
__global__ void largest_of_blocks_kernel(Cut cut, float* signal, const float* grad, float* found) {
  const int64_t b = thread_index() / kTeam;
  const bool is_block = b < cut.num_buckets;
  int64_t begin = 0, end = 0;
  if (is_block) {
    const int32_t g = group_of(cut.first_bucket, 0, cut.num_groups - 1, b);
    const int64_t stop = cut.bounds[g + 1];
    begin = cut.bounds[g] + (b - cut.first_bucket[g]) * cut.bucket;
    end = begin + cut.bucket < stop ? begin + cut.bucket : stop;
  }
  uint32_t largest = 0;
  for (int64_t i = begin / 4 * 4 + 4 * (threadIdx.x % kTeam); i < end; i += 4 * kTeam) {
    float a[4];
    load_within(signal, i, begin, end, a);
    if (grad) {
      float added[4];
      load_within(grad, i, begin, end, added);
      for (int j = 0; j < 4; ++j) a[j] += added[j];
      store_within(signal, i, begin, end, a);
    }
    for (int j = 0; j < 4; ++j) largest = magnitude(a[j]) > largest ? magnitude(a[j]) : largest;  // outside it is 0
  }
  for (int distance = 1; distance < kTeam; distance *= 2) {
    const uint32_t other = __shfl_xor_sync(kWholeWarp, largest, distance);
    largest = largest > other ? largest : other;
  }
  if (is_block && threadIdx.x % kTeam == 0) found[b] = float_of(largest < 0x7f800000u ? largest : 0x7fc00000u);
}

}  // namespace

void largest_of_blocks(const Cut& cut, float* signal, const float* grad, float* found, Stream stream) {
  const int64_t num = cut.num_buckets;
  if (num == 0) return;
  if (cut.bucket <= 16) {
    SAGE_LAUNCH((largest_of_blocks_kernel<4>), blocks_of(4 * num), stream, cut, signal, grad, found);
  } else if (cut.bucket <= 32) {
    SAGE_LAUNCH((largest_of_blocks_kernel<8>), blocks_of(8 * num), stream, cut, signal, grad, found);
  } else {
    SAGE_LAUNCH((largest_of_blocks_kernel<kLanes>), blocks_of(kLanes * num), stream, cut, signal, grad, found);
  }
}

}  // namespace sage::cuda
