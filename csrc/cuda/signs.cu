// Sign methods on a GPU: one bit per element, set if it is not below 0, and two numbers per group, one for either sign.
#include "groups.cuh"

namespace sage::cuda {

namespace {

// Each pair of threads writes a byte. With `keep` the error is left in the signal.
__global__ void sign_bits_kernel(Cut cut, float* signal, int64_t n, const float* low, const float* high, bool keep,
                                 uint8_t* bytes) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  const Groups groups(cut, begin, begin + kTile < n ? begin + kTile : n);
  float a[kQuads][4];
  for (int c = 0; c < kQuads; ++c) load_quad(signal, quad_at(begin, c), n, a[c]);
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c);
    uint32_t set = 0;
    for (int j = 0; j < 4; ++j) set |= static_cast<uint32_t>(i + j < n && !(a[c][j] < 0)) << j;
    const uint32_t next = __shfl_down_sync(kWholeWarp, set, 1);
    if (i >= n) continue;
    if (i % 8 == 0) bytes[i / 8] = static_cast<uint8_t>(set | next << 4);
    if (!keep) continue;
    int32_t group[4];
    groups.buckets(i, n, group);
    for (int j = 0; j < 4; ++j) a[c][j] = finite_or_zero(a[c][j] - (a[c][j] < 0 ? low[group[j]] : high[group[j]]));
    store_quad(signal, i, n, a[c]);
  }
}

__global__ void momentum_kernel(MomentumSigns x, int64_t n) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kQuads][4], m[kQuads][4];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    load_quad(x.signal, quad_at(begin, c), n, a[c]);
    load_quad(x.momentum, quad_at(begin, c), n, m[c]);
  }
  uint32_t largest = 0;
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c);
    uint32_t set = 0;
    for (int j = 0; j < 4; ++j) {
      largest = magnitude(a[c][j]) > largest ? magnitude(a[c][j]) : largest;
      m[c][j] = fmaf(finite_or_zero(a[c][j]), x.rest, m[c][j] * x.beta);
      set |= static_cast<uint32_t>(i + j < n && !(m[c][j] < 0)) << j;
    }
    const uint32_t next = __shfl_down_sync(kWholeWarp, set, 1);
    store_quad(x.momentum, i, n, m[c]);
    if (i < n && i % 8 == 0) x.bits[i / 8] = static_cast<uint8_t>(set | next << 4);
  }
  largest = block_most(largest);
  if (threadIdx.x == 0) atomicMax(x.largest, largest);
}

__global__ void mean_signs_kernel(Cut cut, SignMean x) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  const Groups groups(cut, begin, begin + kTile < x.n ? begin + kTile : x.n);
  const float divisor = static_cast<float>(x.divisor);
  for (int c = 0; c < kQuads; ++c) {
    const int64_t i = quad_at(begin, c);
    if (i >= x.n) continue;
    float sum[4] = {0, 0, 0, 0};
    if (x.added) load_quad(x.out, i, x.n, sum);
    int32_t group[4];
    groups.buckets(i, x.n, group);
    for (int64_t w = 0; w < x.num_payloads; ++w) {
      const uint32_t set = static_cast<uint32_t>(x.bits[w * x.num_bytes + i / 8]) >> (i % 8);
      const float *low = x.low + w * cut.num_groups, *high = x.high + w * cut.num_groups;
      for (int j = 0; j < 4; ++j) sum[j] += set >> j & 1 ? high[group[j]] : low[group[j]];
    }
    for (int j = 0; j < 4; ++j) {
      if (x.votes)  // the sign of the sum, 0 if it is 0; NaN stays
        sum[j] = sum[j] > 0 ? 1 : sum[j] < 0 ? -1 : sum[j];
      else
        sum[j] = sum[j] / divisor;
    }
    store_quad(x.out, i, x.n, sum);
  }
}

}  // namespace

void sign_bits(const Cut& cut, float* signal, int64_t n, const float* low, const float* high, bool keep, uint8_t* bytes,
               Stream stream) {
  if (n > 0) SAGE_LAUNCH(sign_bits_kernel, tiles(n), stream, cut, signal, n, low, high, keep, bytes);
}

void momentum_signs(const MomentumSigns& x, int64_t n, Stream stream) {
  if (n > 0) SAGE_LAUNCH(momentum_kernel, tiles(n), stream, x, n);
}

void mean_signs(const Cut& cut, const SignMean& x, Stream stream) {
  if (x.n > 0) SAGE_LAUNCH(mean_signs_kernel, tiles(x.n), stream, cut, x);
}

}  // namespace sage::cuda
