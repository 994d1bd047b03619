// Quantises buckets to 8 bits on a GPU, with the mean of payloads. A bucket is read once: it stays in registers until its
// scale is known.
#include "codes.cuh"

namespace sage::cuda {

namespace {

// Returns four codes from i on, i being a multiple of 4, the first one lowest; those outside of [begin, end) are 0.
__device__ __forceinline__ uint32_t load_codes(const uint8_t* x, int64_t i, int64_t begin, int64_t end) {
  if (i >= begin && i + 4 <= end && reinterpret_cast<uintptr_t>(x) % 4 == 0)
    return *reinterpret_cast<const uint32_t*>(x + i);
  uint32_t codes = 0;
  for (int j = 0; j < 4; ++j)
    if (i + j >= begin && i + j < end) codes |= static_cast<uint32_t>(x[i + j]) << (8 * j);
  return codes;
}

__device__ __forceinline__ void store_codes(uint8_t* x, int64_t i, int64_t begin, int64_t end, uint32_t codes) {
  if (i >= begin && i + 4 <= end && reinterpret_cast<uintptr_t>(x) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(x + i) = codes;
    return;
  }
  for (int j = 0; j < 4; ++j)
    if (i + j >= begin && i + j < end) x[i + j] = static_cast<uint8_t>(codes >> (8 * j));
}

// kTeam threads, a warp or a block, quantise a bucket, each of them kEach quads. The quads begin at multiples of 4 of the
// vector, so that accesses are of 16 bytes wherever a bucket begins.
template <Codec kCodec, int kTeam, int kEach>
__global__ void blocks_kernel(Cut cut, Blocks x) {
  const int64_t b = thread_index() / kTeam;
  if (b >= cut.num_buckets) return;
  const int32_t g = group_of(cut.first_bucket, 0, cut.num_groups - 1, b);
  const int64_t begin = cut.bounds[g] + (b - cut.first_bucket[g]) * cut.bucket, stop = cut.bounds[g + 1];
  const int64_t end = cut.bucket && begin + cut.bucket < stop ? begin + cut.bucket : stop;
  const int64_t first = begin / 4 * 4 + 4 * (threadIdx.x % kTeam);
  const float divisor = static_cast<float>(x.divisor);
  float a[kEach][4];
  SAGE_UNROLL
  for (int c = 0; c < kEach; ++c) load_within(x.signal, first + 4 * kTeam * c, begin, end, a[c]);
  if (x.grad) {
    SAGE_UNROLL
    for (int c = 0; c < kEach; ++c) {
      float added[4];
      load_within(x.grad, first + 4 * kTeam * c, begin, end, added);
      for (int j = 0; j < 4; ++j) a[c][j] += added[j];
    }
  }
  for (int64_t w = 0; w < x.num_payloads; ++w) {
    const float step = x.scales[w * cut.num_buckets + b] / x.coding.unit;
    SAGE_UNROLL
    for (int c = 0; c < kEach; ++c) {
      const uint32_t codes = load_codes(x.payloads + w * x.n, first + 4 * kTeam * c, begin, end);
      for (int j = 0; j < 4; ++j) a[c][j] += value_of<kCodec>(x.coding, codes >> (8 * j) & 0xff) * step;
    }
  }
  uint32_t largest = 0;
  SAGE_UNROLL
  for (int c = 0; c < kEach; ++c) {
    for (int j = 0; j < 4; ++j) {
      const int64_t i = first + 4 * kTeam * c + j;
      if (x.num_payloads > 0 && x.divisor > 1) a[c][j] = a[c][j] / divisor;
      // Outside of the bucket, 0 times the step of a payload may be NaN.
      if (i >= begin && i < end && magnitude(a[c][j]) > largest) largest = magnitude(a[c][j]);
    }
  }
  largest = kTeam == kThreads ? block_most(largest) : warp_most(largest);
  if (threadIdx.x % kTeam == 0) x.found[b] = float_of(largest);
  const Numbers numbers(x.coding, float_of(largest));
  SAGE_UNROLL
  for (int c = 0; c < kEach; ++c) {
    const int64_t i = first + 4 * kTeam * c;
    uint32_t codes = 0;
    for (int j = 0; j < 4; ++j) {
      const float y = finite_or_zero(a[c][j]) * numbers.prescale * numbers.inverse;
      const uint32_t code = code_of<kCodec>(x.coding, y, 0) & 0xff;
      codes |= code << (8 * j);
      a[c][j] = finite_or_zero(a[c][j] - value_of<kCodec>(x.coding, code) * numbers.step) * divisor;
    }
    store_codes(x.bytes, i, begin, end, codes);
    if (x.keep) store_within(x.signal, i, begin, end, a[c]);
  }
}

// A bucket that begins between two multiples of 4 has one quad more.
template <Codec kCodec>
void launch(const Cut& cut, int64_t longest, const Blocks& x, Stream stream) {
  const int64_t warps = (cut.num_buckets + kWarps - 1) / kWarps;
  if (longest <= 256) {
    SAGE_LAUNCH((blocks_kernel<kCodec, kLanes, 3>), warps, stream, cut, x);
  } else if (longest <= 1024) {
    SAGE_LAUNCH((blocks_kernel<kCodec, kLanes, 9>), warps, stream, cut, x);
  } else if (longest <= 4096) {
    SAGE_LAUNCH((blocks_kernel<kCodec, kThreads, 5>), cut.num_buckets, stream, cut, x);
  } else {
    SAGE_LAUNCH((blocks_kernel<kCodec, kThreads, 17>), cut.num_buckets, stream, cut, x);
  }
}

}  // namespace

void quantise_blocks(const Cut& cut, int64_t longest, const Blocks& x, Stream stream) {
  if (cut.num_buckets == 0) return;
  if (x.coding.codec == Codec::int8) launch<Codec::int8>(cut, longest, x, stream);
  if (x.coding.codec == Codec::e4m3) launch<Codec::e4m3>(cut, longest, x, stream);
  if (x.coding.codec == Codec::e5m2) launch<Codec::e5m2>(cut, longest, x, stream);
}

}  // namespace sage::cuda
