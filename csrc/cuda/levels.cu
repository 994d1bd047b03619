// Quantisers on a GPU: the scales of all buckets, then the codes and the error; and the mean of several payloads.
#include "codes.cuh"
#include "random_tile.cuh"
#include "sums.cuh"

namespace sage::cuda {

namespace {

struct WriteScales {
  bool euclidean;
  float* scales;

  __device__ void operator()(int32_t b, const Statistic& found) const {
    scales[b] = euclidean ? static_cast<float>(sqrt(found.sum)) : float_of(found.largest);
  }
};

// Writes a tile's codes, packed. All threads must call it.
__device__ __forceinline__ void pack_tile(const uint8_t* codes, int bits, uint8_t* bytes, int64_t num_bytes) {
  __syncthreads();
  for (int byte = threadIdx.x; byte < kTile / 8 * bits && byte < num_bytes; byte += kThreads) {
    uint32_t held = 0;
    for (int i = byte * 8 / bits; i * bits < byte * 8 + 8; ++i) {
      const int shift = i * bits - byte * 8;
      held |= shift >= 0 ? static_cast<uint32_t>(codes[i]) << shift : static_cast<uint32_t>(codes[i]) >> -shift;
    }
    bytes[byte] = static_cast<uint8_t>(held);
  }
}

template <Codec kCodec>
__global__ void quantise_kernel(Cut cut, Quantisation x) {
  constexpr bool kRandom = kCodec >= Codec::linear && kCodec <= Codec::power9, kPower9 = kCodec == Codec::power9;
  __shared__ uint16_t random[kRandom ? kTile : 1];
  __shared__ uint8_t codes[kTile];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile, end = begin + kTile < x.n ? begin + kTile : x.n;
  const Groups groups(cut, begin, end);
  float a[kQuads][4];
  for (int c = 0; c < kQuads; ++c) load_quad(x.signal, quad_at(begin, c), x.n, a[c]);
  if constexpr (kRandom) draw_tile(x.key, x.positions, begin, end, random);
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c);
    const int at = static_cast<int>(i - begin);
    int32_t bucket[4] = {0, 0, 0, 0};
    if (!kPower9 && i < x.n) groups.buckets(i, x.n, bucket);
    uint32_t high = 0;
    for (int j = 0; j < 4; ++j) {
      uint32_t code = 0;
      if (i + j < x.n) {
        float y = a[c][j], step = 1;
        const bool is_below = y < 0;
        if constexpr (!kPower9) {
          const Numbers numbers(x.coding, x.scales[bucket[j]]);
          if constexpr (kCodec != Codec::tree) y = finite_or_zero(y);
          if (x.limits) y = float_of(bits_of(least(float_of(magnitude(y)), x.limits[bucket[j]])) | (bits_of(y) & 0x80000000u));
          y = numbers.scaled<kCodec>(y);
          step = numbers.step;
        }
        code = code_of<kCodec>(x.coding, y, kRandom ? random[at + j] : 0) & 0xff;
        float value = value_of<kCodec>(x.coding, code);
        if (kPower9 && is_below) value = 0 - value;
        high |= static_cast<uint32_t>(!is_below) << j;
        a[c][j] = finite_or_zero(a[c][j] - value * step);
      }
      codes[at + j] = static_cast<uint8_t>(code);
    }
    if constexpr (kPower9) {
      const uint32_t next = __shfl_down_sync(kWholeWarp, high, 1);
      if (i < x.n && i % 8 == 0) x.bytes[x.n + i / 8] = static_cast<uint8_t>(high | next << 4);
    }
    if (x.keep && i < x.n) store_quad(x.signal, i, x.n, a[c]);
  }
  const int64_t before = begin / 8 * x.coding.bits;
  pack_tile(codes, x.coding.bits, x.bytes + before, (x.n * x.coding.bits + 7) / 8 - before);
}

template <Codec kCodec>
__global__ void average_kernel(Cut cut, Average x) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  const Groups groups(cut, begin, begin + kTile < x.n ? begin + kTile : x.n);
  const float divisor = static_cast<float>(x.divisor);
  const int bits = x.coding.bits;
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c), byte = i * bits / 8, stop = (x.n * bits + 7) / 8;
    if (i >= x.n) continue;
    float sum[4] = {0, 0, 0, 0};
    if (x.added) load_quad(x.out, i, x.n, sum);
    int32_t bucket[4] = {0, 0, 0, 0};
    if (kCodec != Codec::power9) groups.buckets(i, x.n, bucket);
    for (int64_t w = 0; w < x.num_payloads; ++w) {
      const uint8_t* payload = x.bytes + w * x.num_bytes;
      uint64_t held = 0;  // the codes of four elements, in 5 bytes at most
      for (int k = 0; k < (4 * bits + 11) / 8; ++k)
        if (byte + k < stop) held |= static_cast<uint64_t>(payload[byte + k]) << (8 * k);
      held >>= i * bits % 8;
      const uint32_t high = kCodec == Codec::power9 ? static_cast<uint32_t>(payload[x.n + i / 8]) >> (i % 8) : 0;
      for (int j = 0; j < 4; ++j) {
        float value = value_of<kCodec>(x.coding, static_cast<uint32_t>(held >> (j * bits)) & ((1u << bits) - 1));
        if constexpr (kCodec == Codec::power9)
          value = high >> j & 1 ? value : 0 - value;
        else
          value = value * (x.scales[w * cut.num_buckets + bucket[j]] / x.coding.unit);
        sum[j] += value;
      }
    }
    for (int j = 0; j < 4; ++j) sum[j] = sum[j] / divisor;
    store_quad(x.out, i, x.n, sum);
  }
}

}  // namespace

void scales(bool euclidean, const Cut& cut, float* signal, const float* grad, Statistic* pieces, float* found,
            Stream stream) {
  const WriteScales write{euclidean, found};
  if (euclidean)
    add_buckets<Kind::squares>(cut, signal, grad, pieces, write, stream);
  else
    add_buckets<Kind::largest>(cut, signal, grad, pieces, write, stream);
}

#define SAGE_EACH_CODEC(kernel, x)                                                                              \
  switch ((x).coding.codec) {                                                                                   \
    case Codec::int8: SAGE_LAUNCH(kernel<Codec::int8>, tiles((x).n), stream, cut, x); return;                   \
    case Codec::e4m3: SAGE_LAUNCH(kernel<Codec::e4m3>, tiles((x).n), stream, cut, x); return;                   \
    case Codec::e5m2: SAGE_LAUNCH(kernel<Codec::e5m2>, tiles((x).n), stream, cut, x); return;                   \
    case Codec::linear: SAGE_LAUNCH(kernel<Codec::linear>, tiles((x).n), stream, cut, x); return;               \
    case Codec::natural: SAGE_LAUNCH(kernel<Codec::natural>, tiles((x).n), stream, cut, x); return;             \
    case Codec::power8: SAGE_LAUNCH(kernel<Codec::power8>, tiles((x).n), stream, cut, x); return;               \
    case Codec::power9: SAGE_LAUNCH(kernel<Codec::power9>, tiles((x).n), stream, cut, x); return;               \
    case Codec::e2m1: SAGE_LAUNCH(kernel<Codec::e2m1>, tiles((x).n), stream, cut, x); return;                   \
    case Codec::tree: SAGE_LAUNCH(kernel<Codec::tree>, tiles((x).n), stream, cut, x); return;                   \
  }

void quantise(const Cut& cut, const Quantisation& x, Stream stream) {
  if (x.n > 0) SAGE_EACH_CODEC(quantise_kernel, x)
}

void average(const Cut& cut, const Average& x, Stream stream) {
  if (x.n > 0) SAGE_EACH_CODEC(average_kernel, x)
}

}  // namespace sage::cuda
