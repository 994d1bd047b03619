// Casts between float32 and the two formats of 16 bits, fused with what a dense reduction does beside them. Rounding is to
// nearest, ties to even; what is too large becomes infinity; NaN stays NaN.
#pragma once

#include "base.h"

#if SAGE_X86
#include <cpuid.h>
#endif

namespace sage::cpu {

enum class Format { fp16, bf16 };

// Returns the best instruction set of `isa` and below that has conversions of fp16: AVX2 is defined without them (F16C).
inline Isa with_fp16(Isa isa) {
#if SAGE_X86
  static const bool has = [] {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }();
  return isa == Isa::avx2 && !has ? Isa::scalar : isa;
#else
  return isa;
#endif
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <Format kFormat>
uint16_t narrow(float x) {
  const uint32_t bits = bits_of(x), size = bits & kMagnitude, sign = bits >> 16 & 0x8000u;
  if constexpr (kFormat == Format::bf16) {
    if (size > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  } else {
    if (size > 0x7f800000u) return 0x7e00;
    if (size >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and above
    // Below 2^-14 the spacing is 2^-24, as it is of float32 from 0.5 on: the addition rounds.
    if (size < 0x38800000u) return static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u));
    return static_cast<uint16_t>(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13);
  }
}

template <Format kFormat>
float widen(uint16_t half) {
  if constexpr (kFormat == Format::bf16) return float_of(static_cast<uint32_t>(half) << 16);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size < 0x400u) return float_of(sign | bits_of(static_cast<float>(size) * 0x1p-24f));
  if (size < 0x7c00u) return float_of(sign | ((size << 13) + 0x38000000u));
  return float_of(sign | 0x7f800000u | (size << 13) | (size > 0x7c00u ? 0x400000u : 0));
}

// A rank's share of the mean: share = cast(signal / W), where the signal is residual + grad, and without a residual
// the gradient. The error of the cast, signal - share * W, is left in the residual: 0 where it is not finite.
struct Share {
  const float* grad;
  float* residual;  // may be null
  uint16_t* share;
  float world_size;

  bool streams = false;  // whether the share is written past the caches; its address is then a multiple of 64

  // Whether multiplying by 1 / W gives the bits of dividing by W, in less time.
  bool is_exact() const { return (bits_of(world_size) & 0x7fffffu) == 0; }
};

// The product share * W is exact: it has at most 11 + 13 bits for W up to 8,192. So the compiler may fuse it.
template <Format kFormat>
void share_scalar(const Share& x, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float signal = x.residual ? x.residual[i] + x.grad[i] : x.grad[i];
    x.share[i] = narrow<kFormat>(signal / x.world_size);
    if (!x.residual) continue;
    const float left = signal - widen<kFormat>(x.share[i]) * x.world_size;
    x.residual[i] = magnitude(left) < 0x7f800000u ? left : 0.0f;
  }
}

// out = cast(sum of the rows), added in float32 in their order.
template <Format kFormat>
void sum_scalar(const uint16_t* rows, int64_t num_rows, int64_t n, uint16_t* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float sum = widen<kFormat>(rows[i]);
    for (int64_t row = 1; row < num_rows; ++row) sum += widen<kFormat>(rows[row * n + i]);
    out[i] = narrow<kFormat>(sum);
  }
}

template <Format kFormat>
void widen_scalar(const uint16_t* x, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) out[i] = widen<kFormat>(x[i]);
}

#if SAGE_X86
#define SAGE_AVX2 __attribute__((target("avx2,f16c")))
#define SAGE_AVX512 __attribute__((target("avx512f,avx512dq")))
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
constexpr __mmask16 kAll = 0xffff;  // with a mask, as GCC warns of its own header where there is none

template <Format kFormat>
SAGE_AVX2 inline __m128i narrow_avx2(__m256 x) {
  if constexpr (kFormat == Format::fp16) return _mm256_cvtps_ph(x, kNearest);
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

template <Format kFormat>
SAGE_AVX2 inline __m256 widen_avx2(__m128i half) {
  if constexpr (kFormat == Format::fp16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

template <Format kFormat, bool kExact>
SAGE_AVX2 int64_t share_avx2(const Share& x, int64_t begin, int64_t end) {
  const __m256 by = _mm256_set1_ps(x.world_size), times = _mm256_set1_ps(1 / x.world_size);
  const __m256 sign = _mm256_set1_ps(-0.0f), infinity = _mm256_set1_ps(__builtin_inff());
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    __m256 signal = _mm256_loadu_ps(x.grad + i);
    if (x.residual) signal = _mm256_add_ps(_mm256_loadu_ps(x.residual + i), signal);
    const __m128i half = narrow_avx2<kFormat>(kExact ? _mm256_mul_ps(signal, times) : _mm256_div_ps(signal, by));
    auto* to = reinterpret_cast<__m128i*>(x.share + i);
    x.streams ? _mm_stream_si128(to, half) : _mm_storeu_si128(to, half);
    if (!x.residual) continue;
    const __m256 left = _mm256_sub_ps(signal, _mm256_mul_ps(widen_avx2<kFormat>(half), by));
    const __m256 is_finite = _mm256_cmp_ps(_mm256_andnot_ps(sign, left), infinity, _CMP_LT_OQ);
    _mm256_storeu_ps(x.residual + i, _mm256_and_ps(left, is_finite));
  }
  _mm_sfence();
  return i;
}

template <Format kFormat>
SAGE_AVX2 int64_t sum_avx2(const uint16_t* rows, int64_t num_rows, int64_t n, uint16_t* out, int64_t begin,
                           int64_t end) {
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    const auto at = [&](int64_t row) { return reinterpret_cast<const __m128i*>(rows + row * n + i); };
    __m256 sum = widen_avx2<kFormat>(_mm_loadu_si128(at(0)));
    for (int64_t row = 1; row < num_rows; ++row)
      sum = _mm256_add_ps(sum, widen_avx2<kFormat>(_mm_loadu_si128(at(row))));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), narrow_avx2<kFormat>(sum));
  }
  return i;
}

template <Format kFormat>
SAGE_AVX2 int64_t widen_avx2(const uint16_t* x, float* out, int64_t begin, int64_t end, bool streams) {
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    const __m256 wide = widen_avx2<kFormat>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    streams ? _mm256_stream_ps(out + i, wide) : _mm256_storeu_ps(out + i, wide);
  }
  _mm_sfence();
  return i;
}

template <Format kFormat>
SAGE_AVX512 inline __m256i narrow_avx512(__m512 x) {
  if constexpr (kFormat == Format::fp16) return _mm512_maskz_cvtps_ph(kAll, x, kNearest);
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i whole = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_maskz_cvtepi32_epi16(kAll, _mm512_maskz_srli_epi32(kAll, whole, 16));
}

template <Format kFormat>
SAGE_AVX512 inline __m512 widen_avx512(__m256i half) {
  if constexpr (kFormat == Format::fp16) return _mm512_maskz_cvtph_ps(kAll, half);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, half), 16));
}

template <Format kFormat, bool kExact>
SAGE_AVX512 int64_t share_avx512(const Share& x, int64_t begin, int64_t end) {
  const __m512 by = _mm512_set1_ps(x.world_size), times = _mm512_set1_ps(1 / x.world_size);
  const __m512 infinity = _mm512_set1_ps(__builtin_inff());
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    __m512 signal = _mm512_loadu_ps(x.grad + i);
    if (x.residual) signal = _mm512_add_ps(_mm512_loadu_ps(x.residual + i), signal);
    const __m256i half = narrow_avx512<kFormat>(kExact ? _mm512_mul_ps(signal, times) : _mm512_div_ps(signal, by));
    auto* to = reinterpret_cast<__m256i*>(x.share + i);
    x.streams ? _mm256_stream_si256(to, half) : _mm256_storeu_si256(to, half);
    if (!x.residual) continue;
    const __m512 left = _mm512_sub_ps(signal, _mm512_mul_ps(widen_avx512<kFormat>(half), by));
    const __mmask16 is_finite = _mm512_cmp_ps_mask(_mm512_abs_ps(left), infinity, _CMP_LT_OQ);
    _mm512_storeu_ps(x.residual + i, _mm512_maskz_mov_ps(is_finite, left));
  }
  _mm_sfence();
  return i;
}

template <Format kFormat>
SAGE_AVX512 int64_t sum_avx512(const uint16_t* rows, int64_t num_rows, int64_t n, uint16_t* out, int64_t begin,
                               int64_t end) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    const auto at = [&](int64_t row) { return reinterpret_cast<const __m256i*>(rows + row * n + i); };
    __m512 sum = widen_avx512<kFormat>(_mm256_loadu_si256(at(0)));
    for (int64_t row = 1; row < num_rows; ++row)
      sum = _mm512_add_ps(sum, widen_avx512<kFormat>(_mm256_loadu_si256(at(row))));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), narrow_avx512<kFormat>(sum));
  }
  return i;
}

template <Format kFormat>
SAGE_AVX512 int64_t widen_avx512(const uint16_t* x, float* out, int64_t begin, int64_t end, bool streams) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    const __m512 wide = widen_avx512<kFormat>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)));
    streams ? _mm512_stream_ps(out + i, wide) : _mm512_storeu_ps(out + i, wide);
  }
  _mm_sfence();
  return i;
}

#undef SAGE_AVX2
#undef SAGE_AVX512
#endif  // SAGE_X86

// Runs work(begin, end) on each thread's part of n elements.
template <class Work>
void each_part(const Team& team, int64_t n, const Work& work) {
  const int64_t parts = team.parts(n);
  team.each(parts, [&](int64_t part) { work(part_begin(n, parts, part), part_begin(n, parts, part + 1)); });
}

// Whether to write n elements past the caches, which saves reading the memory first: if they are longer than a cache.
inline bool may_stream(const void* out, int64_t n) {
  return n > int64_t{1} << 20 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

template <Format kFormat>
void cast_share(Isa isa, const Team& team, Share x, int64_t n) {
  isa = with_fp16(isa);
  x.streams = may_stream(x.share, n);
  each_part(team, n, [&](int64_t begin, int64_t end) {
#if SAGE_X86
    if (isa == Isa::avx512)
      begin = x.is_exact() ? share_avx512<kFormat, true>(x, begin, end) : share_avx512<kFormat, false>(x, begin, end);
    if (isa == Isa::avx2)
      begin = x.is_exact() ? share_avx2<kFormat, true>(x, begin, end) : share_avx2<kFormat, false>(x, begin, end);
#endif
    share_scalar<kFormat>(x, begin, end);
  });
}

// out = cast(sum of `num_rows` rows of n elements); out is not in the rows.
template <Format kFormat>
void sum_casts(Isa isa, const Team& team, const uint16_t* rows, int64_t num_rows, uint16_t* out, int64_t n) {
  isa = with_fp16(isa);
  each_part(team, n, [&](int64_t begin, int64_t end) {
#if SAGE_X86
    if (isa == Isa::avx512) begin = sum_avx512<kFormat>(rows, num_rows, n, out, begin, end);
    if (isa == Isa::avx2) begin = sum_avx2<kFormat>(rows, num_rows, n, out, begin, end);
#endif
    sum_scalar<kFormat>(rows, num_rows, n, out, begin, end);
  });
}

template <Format kFormat>
void widen(Isa isa, const Team& team, const uint16_t* x, float* out, int64_t n) {
  isa = with_fp16(isa);
  each_part(team, n, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const bool streams = may_stream(out, n);
#if SAGE_X86
    if (isa == Isa::avx512) begin = widen_avx512<kFormat>(x, out, begin, end, streams);
    if (isa == Isa::avx2) begin = widen_avx2<kFormat>(x, out, begin, end, streams);
#endif
    widen_scalar<kFormat>(x, out, begin, end);
  });
}

}  // namespace sage::cpu
