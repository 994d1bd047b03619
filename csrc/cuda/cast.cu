// Casts between float32 and 16 bits on a GPU, fused with the rest of a dense reduction: rounded as by cpu/cast_kernel.h.
#include "groups.cuh"

namespace sage::cuda {

namespace {

constexpr int kOctets = kItems / 8;  // of a thread

// Return the bits in 16 bits: to the nearest, ties to even; what is too large becomes infinity, and NaN stays NaN.
template <bool kFp16>
__device__ __forceinline__ uint32_t narrow(float x) {
  const uint32_t bits = bits_of(x), size = bits & kMagnitude, sign = bits >> 16 & 0x8000u;
  if constexpr (!kFp16) return size > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  if (size > 0x7f800000u) return 0x7e00u;
  if (size >= 0x47800000u) return sign | 0x7c00u;  // 2^16 and above
  // Below 2^-14 the spacing is 2^-24, as it is of float32 from 0.5 on: the addition rounds.
  if (size < 0x38800000u) return sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u);
  return sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
}

template <bool kFp16>
__device__ __forceinline__ float widened(uint32_t half) {
  if constexpr (!kFp16) return float_of(half << 16);
  const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size < 0x400u) return float_of(sign | bits_of(static_cast<float>(size) * 0x1p-24f));
  if (size < 0x7c00u) return float_of(sign | ((size << 13) + 0x38000000u));
  return float_of(sign | 0x7f800000u | (size << 13) | (size > 0x7c00u ? 0x400000u : 0));
}

// The first element of this thread's octet c.
__device__ __forceinline__ int64_t octet_at(int c) {
  return static_cast<int64_t>(blockIdx.x) * kTile + 8 * (c * kThreads + threadIdx.x);
}

// Load elements i to i + 7, i being a multiple of 8; those from n on are 0.
__device__ __forceinline__ void load_octet(const float* x, int64_t i, int64_t n, float (&a)[8]) {
  float low[4], high[4];
  load_quad(x, i, n, low);
  load_quad(x, i + 4, n, high);
  for (int j = 0; j < 4; ++j) a[j] = low[j], a[j + 4] = high[j];
}

__device__ __forceinline__ void store_octet(float* x, int64_t i, int64_t n, const float (&a)[8]) {
  store_quad(x, i, n, {a[0], a[1], a[2], a[3]});
  store_quad(x, i + 4, n, {a[4], a[5], a[6], a[7]});
}

template <bool kFp16>
__device__ __forceinline__ void load_halves(const uint16_t* x, int64_t i, int64_t n, float (&a)[8]) {
  if (i + 8 <= n && is_aligned(x)) {
    const uint4 all = *reinterpret_cast<const uint4*>(x + i);
    const uint32_t words[4] = {all.x, all.y, all.z, all.w};
    for (int j = 0; j < 8; ++j) a[j] = widened<kFp16>(words[j / 2] >> (16 * (j % 2)) & 0xffffu);
    return;
  }
  for (int j = 0; j < 8; ++j) a[j] = widened<kFp16>(i + j < n ? x[i + j] : 0);
}

// Casts the elements, stores them, and returns in `a` what they were rounded to.
template <bool kFp16>
__device__ __forceinline__ void store_halves(uint16_t* x, int64_t i, int64_t n, float (&a)[8]) {
  uint32_t half[8];
  for (int j = 0; j < 8; ++j) half[j] = narrow<kFp16>(a[j]);
  if (i + 8 <= n && is_aligned(x)) {
    *reinterpret_cast<uint4*>(x + i) = uint4{half[0] | half[1] << 16, half[2] | half[3] << 16, half[4] | half[5] << 16,
                                             half[6] | half[7] << 16};
  } else {
    for (int j = 0; j < 8; ++j)
      if (i + j < n) x[i + j] = static_cast<uint16_t>(half[j]);
  }
  for (int j = 0; j < 8; ++j) a[j] = widened<kFp16>(half[j]);
}

// kExact: multiplying by 1 / W gives the bits of dividing by W, in less time.
template <bool kFp16, bool kExact>
__global__ void share_kernel(Share x, int64_t n) {
  const float by = static_cast<float>(x.world_size), times = 1 / by;
  float a[kOctets][8];
  SAGE_UNROLL
  for (int c = 0; c < kOctets; ++c) {
    load_octet(x.grad, octet_at(c), n, a[c]);
    if (!x.residual) continue;
    float left[8];
    load_octet(x.residual, octet_at(c), n, left);
    for (int j = 0; j < 8; ++j) a[c][j] = left[j] + a[c][j];
  }
  SAGE_UNROLL
  for (int c = 0; c < kOctets; ++c) {
    float part[8];
    for (int j = 0; j < 8; ++j) part[j] = kExact ? a[c][j] * times : a[c][j] / by;
    store_halves<kFp16>(x.share, octet_at(c), n, part);
    if (!x.residual) continue;
    for (int j = 0; j < 8; ++j) a[c][j] = finite_or_zero(a[c][j] - part[j] * by);
    store_octet(x.residual, octet_at(c), n, a[c]);
  }
}

template <bool kFp16>
__global__ void sum_kernel(const uint16_t* rows, int64_t num_rows, uint16_t* out, int64_t n) {
  float sum[kOctets][8];
  SAGE_UNROLL
  for (int c = 0; c < kOctets; ++c) load_halves<kFp16>(rows, octet_at(c), n, sum[c]);
  for (int64_t row = 1; row < num_rows; ++row) {
    SAGE_UNROLL
    for (int c = 0; c < kOctets; ++c) {
      float own[8];
      load_halves<kFp16>(rows + row * n, octet_at(c), n, own);
      for (int j = 0; j < 8; ++j) sum[c][j] += own[j];
    }
  }
  SAGE_UNROLL
  for (int c = 0; c < kOctets; ++c) store_halves<kFp16>(out, octet_at(c), n, sum[c]);
}

template <bool kFp16>
__global__ void widen_kernel(const uint16_t* x, float* out, int64_t n) {
  float a[kOctets][8];
  SAGE_UNROLL
  for (int c = 0; c < kOctets; ++c) load_halves<kFp16>(x, octet_at(c), n, a[c]);
  SAGE_UNROLL
  for (int c = 0; c < kOctets; ++c) store_octet(out, octet_at(c), n, a[c]);
}

template <bool kFp16>
void launch_share(const Share& x, int64_t n, Stream stream) {
  if ((x.world_size & (x.world_size - 1)) == 0) {
    SAGE_LAUNCH((share_kernel<kFp16, true>), tiles(n), stream, x, n);
  } else {
    SAGE_LAUNCH((share_kernel<kFp16, false>), tiles(n), stream, x, n);
  }
}

}  // namespace

void cast_share(bool fp16, const Share& x, int64_t n, Stream stream) {
  if (n > 0) fp16 ? launch_share<true>(x, n, stream) : launch_share<false>(x, n, stream);
}

void sum_casts(bool fp16, const uint16_t* rows, int64_t num_rows, uint16_t* out, int64_t n, Stream stream) {
  if (n == 0) return;
  if (fp16) {
    SAGE_LAUNCH(sum_kernel<true>, tiles(n), stream, rows, num_rows, out, n);
  } else {
    SAGE_LAUNCH(sum_kernel<false>, tiles(n), stream, rows, num_rows, out, n);
  }
}

void widen(bool fp16, const uint16_t* x, float* out, int64_t n, Stream stream) {
  if (n == 0) return;
  if (fp16) {
    SAGE_LAUNCH(widen_kernel<true>, tiles(n), stream, x, out, n);
  } else {
    SAGE_LAUNCH(widen_kernel<false>, tiles(n), stream, x, out, n);
  }
}

}  // namespace sage::cuda
