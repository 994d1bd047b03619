// The scales of blocks on a GPU, with the bits of cpu/microscales.h.
#include "codes.cuh"

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

// The largest finite magnitude of each group, as bits; where a warp's blocks are of one group, one lane writes.
__global__ void largest_of_tensors_kernel(Cut cut, const float* largest, uint32_t* found) {
  const int64_t b = thread_index(), n = cut.bounds[cut.num_groups], at = b < n ? b : n - 1;
  const int32_t g = group_of(cut.bounds, 0, cut.num_groups - 1, at);
  const uint32_t whole = magnitude(largest[at]), most = whole < 0x7f800000u ? whole : 0;
  const int32_t first = static_cast<int32_t>(__shfl_sync(kWholeWarp, static_cast<uint32_t>(g), 0));
  if (__ballot_sync(kWholeWarp, g != first) == 0) {
    const uint32_t all = warp_most(most);
    if (threadIdx.x % kLanes == 0) atomicMax(&found[g], all);
  } else {
    atomicMax(&found[g], most);
  }
}

// Four bytes of a float32 that may begin anywhere.
__device__ __forceinline__ float load_float(const uint8_t* x) {
  uint32_t bits = 0;
  for (int j = 0; j < 4; ++j) bits |= static_cast<uint32_t>(x[j]) << (8 * j);
  return float_of(bits);
}

__device__ __forceinline__ float scale_of(const Coding& coding, uint32_t code, float tensor) {
  return value_of<Codec::e4m3>(coding, code) * 256 * tensor * 4;  // value_of divides by 256
}

__global__ void write_tensor_scales_kernel(Coding coding, Cut cut, const float* largest, const uint32_t* found, uint8_t* bytes,
                                           float* scales) {
  const int64_t b = thread_index(), n = cut.bounds[cut.num_groups];
  if (b < cut.num_groups) {
    const uint32_t bits = bits_of(float_of(found[b]) / (6.0f * 448.0f));
    for (int j = 0; j < 4; ++j) bytes[4 * b + j] = static_cast<uint8_t>(bits >> (8 * j));
  }
  if (b >= n) return;
  const int32_t g = group_of(cut.bounds, 0, cut.num_groups - 1, b);
  const float tensor = float_of(found[g]) / (6.0f * 448.0f), share = largest[b] / 6.0f / tensor;
  const uint32_t own = code_of<Codec::e4m3>(coding, share > 0 ? least(share, 448) : 0, 0) & 0xff;
  const uint32_t code = magnitude(largest[b]) > 0x7f800000u ? 0x7f : own;
  bytes[4 * static_cast<int64_t>(cut.num_groups) + b] = static_cast<uint8_t>(code);
  scales[b] = scale_of(coding, code, tensor);
}

__global__ void read_tensor_scales_kernel(Coding coding, Cut cut, const uint8_t* bytes, float* scales) {
  const int64_t b = thread_index();
  if (b >= cut.bounds[cut.num_groups]) return;
  const int32_t g = group_of(cut.bounds, 0, cut.num_groups - 1, b);
  const uint8_t* shares = bytes + 4 * static_cast<int64_t>(cut.num_groups);
  scales[b] = scale_of(coding, shares[b], load_float(bytes + 4 * static_cast<int64_t>(g)));
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

void write_tensor_scales(const Cut& cut, int64_t num, const float* largest, uint32_t* found, uint8_t* bytes, float* scales,
                          Stream stream) {
  if (num > 0) SAGE_LAUNCH(largest_of_tensors_kernel, blocks_of(num), stream, cut, largest, found);
  const Coding coding(Codec::e4m3, 1);
  const int64_t most = num > cut.num_groups ? num : cut.num_groups;
  if (most > 0) SAGE_LAUNCH(write_tensor_scales_kernel, blocks_of(most), stream, coding, cut, largest, found, bytes, scales);
}

void read_tensor_scales(const Cut& cut, int64_t num, const uint8_t* bytes, float* scales, Stream stream) {
  const Coding coding(Codec::e4m3, 1);
  if (num > 0) SAGE_LAUNCH(read_tensor_scales_kernel, blocks_of(num), stream, coding, cut, bytes, scales);
}

}  // namespace sage::cuda
