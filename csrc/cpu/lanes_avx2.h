// Sixteen lanes in two registers of AVX2. See lanes_avx512.h for what each function does.
#pragma once

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
struct M {
  __m256i a, b;
};
struct D {
  __m256d v[4];
};
using H = __m256i;
struct W {
  __m256i v[4];  // lanes 0, 2, 4, 6; 1, 3, 5, 7; and so on
};

inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline I seti(uint32_t x) {
  const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(x));
  return {all, all};
}
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F load(const float* p, int n) {
  return {_mm256_maskload_ps(p, first(n)), n > 8 ? _mm256_maskload_ps(p + 8, first(n - 8)) : _mm256_setzero_ps()};
}
inline void store(float* p, F f) {
  _mm256_storeu_ps(p, f.a);
  _mm256_storeu_ps(p + 8, f.b);
}
inline void store(float* p, F f, int n) {
  _mm256_maskstore_ps(p, first(n), f.a);
  if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), f.b);
}
inline I loadi(const void* p) {
  const auto* at = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline void storei(void* p, I i) {
  auto* at = static_cast<__m256i*>(p);
  _mm256_storeu_si256(at, i.a);
  _mm256_storeu_si256(at + 1, i.b);
}
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F fused(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F least(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline I bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline F floats(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline I band(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I bor(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline I bxor(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
inline I addi(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I subi(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline I leastu(I x, I y) { return {_mm256_min_epu32(x.a, y.a), _mm256_min_epu32(x.b, y.b)}; }
inline I mostu(I x, I y) { return {_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b)}; }
template <int k> I shl(I x) { return {_mm256_slli_epi32(x.a, k), _mm256_slli_epi32(x.b, k)}; }
template <int k> I shr(I x) { return {_mm256_srli_epi32(x.a, k), _mm256_srli_epi32(x.b, k)}; }
inline M is_less(F x, F y) {
  return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
inline M is_lessi(I x, I y) { return {_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)}; }
inline F select(M m, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_castsi256_ps(m.a)), _mm256_blendv_ps(no.b, yes.b, _mm256_castsi256_ps(m.b))};
}
inline I selecti(M m, I yes, I no) {
  return {_mm256_blendv_epi8(no.a, yes.a, m.a), _mm256_blendv_epi8(no.b, yes.b, m.b)};
}
inline uint32_t bits_of(M m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.a))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.b))) << 8;
}
inline M mask_of(uint32_t bits) {
  const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(bits));
  const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
  return {_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low), _mm256_cmpeq_epi32(_mm256_and_si256(all, high), high)};
}
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F round_down(F x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
inline I load_u8(const uint8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}
inline I load_u16(const uint16_t* p) {
  const auto* at = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
}
inline __m256i to_u16(I x) {  // the low 16 bits of each lane, in order
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i both = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
  return _mm256_permute4x64_epi64(both, 0xd8);
}
inline void store_u16(uint16_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_u16(x)); }
inline void store_u8(uint8_t* p, I x) {
  const __m256i words = _mm256_and_si256(to_u16(x), _mm256_set1_epi16(0xff));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline H load_half(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_half(uint16_t* p, H h) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h); }
inline void stream_half(uint16_t* p, H h) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), h); }
inline void stream(float* p, F f) {
  _mm256_stream_ps(p, f.a);
  _mm256_stream_ps(p + 8, f.b);
}
inline void fence() { _mm_sfence(); }
inline I wide_half(H h) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(h)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(h, 1))};
}
inline H low_halves(I x) { return to_u16(x); }
inline F from_fp16(H h) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}
inline H to_fp16(F x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(x.b, kNearest), _mm256_cvtps_ph(x.a, kNearest));
}
struct Unpacking {
  I bytes, shift, mask;

  explicit Unpacking(int bits) {
    alignas(32) uint32_t pick[16], first[16];
    for (uint32_t l = 0; l < 16; ++l) {
      const uint32_t byte = std::min(l * bits / 8, 14u);
      pick[l] = byte | (byte + 1) << 8 | 0x80800000u;
      first[l] = l * bits - 8 * byte;
    }
    bytes = loadi(pick);
    shift = loadi(first);
    mask = seti((1u << bits) - 1);
  }

  I codes(const uint8_t* p) const {
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const auto half = [&](__m256i pick, __m256i first, __m256i low) {
      return _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(all, pick), first), low);
    };
    return {half(bytes.a, shift.a, mask.a), half(bytes.b, shift.b, mask.b)};
  }
};

inline F look_up(F table, I at) {
  const __m256i high_a = _mm256_slli_epi32(at.a, 28), high_b = _mm256_slli_epi32(at.b, 28);  // bit 3 is the sign
  const auto pick = [&](__m256i lane, __m256i high) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.a, lane), _mm256_permutevar8x32_ps(table.b, lane),
                            _mm256_castsi256_ps(high));
  };
  return {pick(at.a, high_a), pick(at.b, high_b)};
}
inline F look_up_128(const float* table, I at) {
  return {_mm256_i32gather_ps(table, at.a, 4), _mm256_i32gather_ps(table, at.b, 4)};
}
inline I gather(const uint32_t* table, I at) {
  const int* numbers = reinterpret_cast<const int*>(table);
  return {_mm256_i32gather_epi32(numbers, at.a, 4), _mm256_i32gather_epi32(numbers, at.b, 4)};
}
constexpr bool kHasPermutations = false;
inline I num_below_127(const uint32_t* levels, I x) {
  I at = seti(0);
  for (int num = 1; num < 128; levels += num, num *= 2)
    at = addi(addi(at, at), selecti(is_lessi(gather(levels, at), x), seti(1), seti(0)));
  return at;
}
template <int k> F across(F x) {
  if constexpr (k < 4) return {_mm256_permute_ps(x.a, k == 1 ? 0xb1 : 0x4e), _mm256_permute_ps(x.b, k == 1 ? 0xb1 : 0x4e)};
  if constexpr (k == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
  return {x.b, x.a};
}
inline D zeros() { return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}}; }
inline D widen(F x) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
           _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))}};
}
inline D add_wide(D d, F x) {
  const D wide = widen(x);
  for (int i = 0; i < 4; ++i) d.v[i] = _mm256_add_pd(d.v[i], wide.v[i]);
  return d;
}
inline D add_squares(D d, F x) {
  const D wide = widen(x);
  for (int i = 0; i < 4; ++i) d.v[i] = _mm256_add_pd(d.v[i], _mm256_mul_pd(wide.v[i], wide.v[i]));
  return d;
}
inline double fold(D low, D high) {
  __m256d s[4];
  for (int i = 0; i < 4; ++i) s[i] = _mm256_add_pd(low.v[i], high.v[i]);
  const __m256d four = _mm256_add_pd(_mm256_add_pd(s[0], s[2]), _mm256_add_pd(s[1], s[3]));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
inline uint32_t largest_of(I x) {
  const __m256i eight = _mm256_max_epu32(x.a, x.b);
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1))));
}
inline W wide(I x) { return {{x.a, _mm256_srli_epi64(x.a, 32), x.b, _mm256_srli_epi64(x.b, 32)}}; }
inline W multiply(W x, uint32_t y) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int32_t>(y));
  for (int i = 0; i < 4; ++i) x.v[i] = _mm256_mul_epu32(x.v[i], factor);
  return x;
}
inline W high(W x) {
  for (int i = 0; i < 4; ++i) x.v[i] = _mm256_srli_epi64(x.v[i], 32);
  return x;
}
inline W xor3(W x, W y, uint32_t z) {
  const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(z));
  for (int i = 0; i < 4; ++i) x.v[i] = _mm256_xor_si256(_mm256_xor_si256(x.v[i], y.v[i]), all);
  return x;
}
inline I narrow(W x) {
  return {_mm256_blend_epi32(x.v[0], _mm256_slli_epi64(x.v[1], 32), 0xaa),
          _mm256_blend_epi32(x.v[2], _mm256_slli_epi64(x.v[3], 32), 0xaa)};
}

#include "lanes_common.h"
