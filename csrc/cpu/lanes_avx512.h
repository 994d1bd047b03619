// Sixteen lanes in one register of AVX-512: F float32, I int32 or uint32, M a mask, D float64, W uint64. A W holds a
// number of 32 bits in the low half of each lane; its high half is not defined after multiply and xor3.
#pragma once

using F = __m512;
using I = __m512i;
using M = __mmask16;
struct D {
  __m512d low, high;
};
struct W {
  __m512i even, odd;
};
using H = __m256i;  // sixteen numbers of 16 bits

inline M first(int n) { return static_cast<M>((1u << n) - 1); }

inline F set(float x) { return _mm512_set1_ps(x); }
inline I seti(uint32_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }  // 0 beyond the n first lanes
inline void store(float* p, F f) { _mm512_storeu_ps(p, f); }
inline void store(float* p, F f, int n) { _mm512_mask_storeu_ps(p, first(n), f); }
inline I loadi(const void* p) { return _mm512_loadu_si512(p); }
inline void storei(void* p, I i) { _mm512_storeu_si512(p, i); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fused(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a·b + c, rounded once
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F least(F a, F b) { return _mm512_min_ps(a, b); }  // b where either is NaN
inline I bits(F a) { return _mm512_castps_si512(a); }
inline F floats(I a) { return _mm512_castsi512_ps(a); }
inline I band(I a, I b) { return _mm512_and_si512(a, b); }
inline I bor(I a, I b) { return _mm512_or_si512(a, b); }
inline I bxor(I a, I b) { return _mm512_xor_si512(a, b); }
inline I addi(I a, I b) { return _mm512_add_epi32(a, b); }
inline I subi(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I leastu(I a, I b) { return _mm512_min_epu32(a, b); }
inline I mostu(I a, I b) { return _mm512_max_epu32(a, b); }
template <int k> I shl(I a) { return _mm512_slli_epi32(a, k); }
template <int k> I shr(I a) { return _mm512_srli_epi32(a, k); }
inline M is_less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }  // false where either is NaN
inline M is_lessi(I a, I b) { return _mm512_cmplt_epi32_mask(a, b); }        // signed
inline F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
inline I selecti(M m, I yes, I no) { return _mm512_mask_blend_epi32(m, no, yes); }
inline uint32_t bits_of(M m) { return m; }  // lane l is bit l
inline M mask_of(uint32_t bits) { return static_cast<M>(bits); }
inline I to_int(F a) { return _mm512_cvtps_epi32(a); }  // to the nearest, ties to even
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline F round_down(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline I load_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I load_u16(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_u8(uint8_t* p, I a) {  // the low 8 bits of each lane
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
inline void store_u16(uint16_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}
inline H load_half(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_half(uint16_t* p, H h) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h); }
// Past the caches, to an address that is a multiple of the register's size; fence() makes them visible.
inline void stream_half(uint16_t* p, H h) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), h); }
inline void stream(float* p, F f) { _mm512_stream_ps(p, f); }
inline void fence() { _mm_sfence(); }
inline I wide_half(H h) { return _mm512_cvtepu16_epi32(h); }
inline H low_halves(I a) { return _mm512_cvtepi32_epi16(a); }  // of numbers below 2^16
inline F from_fp16(H h) { return _mm512_cvtph_ps(h); }
inline H to_fp16(F a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// How sixteen codes of some bits lie in 2·bits bytes: the two bytes that hold the code of each lane, and its first bit.
struct Unpacking {
  __m512i bytes, shift, mask;

  explicit Unpacking(int bits) {
    alignas(64) uint32_t pick[16], first[16];
    for (uint32_t l = 0; l < 16; ++l) {
      const uint32_t byte = std::min(l * bits / 8, 14u);
      pick[l] = byte | (byte + 1) << 8 | 0x80800000u;
      first[l] = l * bits - 8 * byte;
    }
    bytes = _mm512_load_si512(pick);
    shift = _mm512_load_si512(first);
    mask = _mm512_set1_epi32((1 << bits) - 1);
  }

  // Reads the codes; 16 bytes must be readable.
  I codes(const uint8_t* p) const {
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_and_si512(_mm512_srlv_epi32(_mm512_shuffle_epi8(all, bytes), shift), mask);
  }
};

inline F look_up(F table, I at) { return _mm512_permutexvar_ps(at, table); }  // lane at % 16 of the table
inline F look_up_128(const float* table, I at) {  // of 128 numbers; at is below that
  const auto of_32 = [&](int first) { return _mm512_permutex2var_ps(load(table + first), at, load(table + first + 16)); };
  const M odd = _mm512_test_epi32_mask(at, seti(32)), high = _mm512_test_epi32_mask(at, seti(64));
  return select(high, select(odd, of_32(96), of_32(64)), select(odd, of_32(32), of_32(0)));
}
constexpr bool kHasPermutations = true;  // of 128 numbers, which are faster than to gather them
// How many of 127 ascending numbers are below x, both signed; `levels` has them in the order of a search by halves.
inline I num_below_127(const uint32_t* levels, I x) {
  const auto next = [&](I at, I limit) {
    const I twice = addi(at, at);
    return _mm512_mask_add_epi32(twice, is_lessi(limit, x), twice, seti(1));
  };
  const auto of_32 = [&](const uint32_t* from, I at) { return _mm512_permutex2var_epi32(loadi(from), at, loadi(from + 16)); };
  I at = next(seti(0), seti(levels[0]));
  at = next(at, _mm512_permutexvar_epi32(at, loadi(levels + 1)));
  at = next(at, _mm512_permutexvar_epi32(at, loadi(levels + 3)));
  at = next(at, _mm512_permutexvar_epi32(at, loadi(levels + 7)));
  at = next(at, _mm512_permutexvar_epi32(at, loadi(levels + 15)));
  at = next(at, of_32(levels + 31, at));
  return next(at, selecti(_mm512_test_epi32_mask(at, seti(32)), of_32(levels + 95, at), of_32(levels + 63, at)));
}
inline I gather(const uint32_t* table, I at) { return _mm512_i32gather_epi32(at, table, 4); }
template <int k> F across(F a) {  // the number of lane l ^ k, for k = 1, 2, 4 and 8
  if constexpr (k < 4) return _mm512_permute_ps(a, k == 1 ? 0xb1 : 0x4e);
  return _mm512_shuffle_f32x4(a, a, k == 4 ? 0xb1 : 0x4e);
}
inline D zeros() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
inline __m512d wide_low(F a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
inline __m512d wide_high(F a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
inline D add_wide(D d, F a) { return {_mm512_add_pd(d.low, wide_low(a)), _mm512_add_pd(d.high, wide_high(a))}; }
// The square of a float32 is exact in float64, so that a fused multiplication and addition rounds as two operations do.
inline D add_squares(D d, F a) {
  const __m512d low = wide_low(a), high = wide_high(a);
  return {_mm512_fmadd_pd(low, low, d.low), _mm512_fmadd_pd(high, high, d.high)};
}
// The sum of 32 lanes by halves: lane l + lane l + 16, then l + 8, l + 4, l + 2, l + 1.
inline double fold(D low, D high) {
  const __m512d eight = _mm512_add_pd(_mm512_add_pd(low.low, high.low), _mm512_add_pd(low.high, high.high));
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
inline uint32_t largest_of(I a) { return _mm512_reduce_max_epu32(a); }
inline W wide(I a) { return {a, _mm512_srli_epi64(a, 32)}; }
inline W multiply(W a, uint32_t b) {  // of the low 32 bits
  const __m512i factor = _mm512_set1_epi32(static_cast<int32_t>(b));
  return {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
}
inline W high(W a) { return {_mm512_srli_epi64(a.even, 32), _mm512_srli_epi64(a.odd, 32)}; }
inline W xor3(W a, W b, uint32_t c) {
  const __m512i all = _mm512_set1_epi32(static_cast<int32_t>(c));
  return {_mm512_ternarylogic_epi64(a.even, b.even, all, 0x96), _mm512_ternarylogic_epi64(a.odd, b.odd, all, 0x96)};
}
inline I narrow(W a) { return _mm512_mask_blend_epi32(0xaaaa, a.even, _mm512_slli_epi64(a.odd, 32)); }

#include "lanes_common.h"
