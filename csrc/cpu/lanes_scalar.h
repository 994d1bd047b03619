// Sixteen lanes in plain C++, for processors without AVX2. See lanes_avx512.h for what each function does.
#pragma once

struct F {
  float v[16];
};
struct I {
  uint32_t v[16];
};
struct M {
  uint32_t bits;
};
struct D {
  double v[16];
};
struct W {
  uint64_t v[16];
};
struct H {
  uint16_t v[16];
};

#define SAGE_EACH for (int l = 0; l < 16; ++l)

inline F set(float x) { F f; SAGE_EACH f.v[l] = x; return f; }
inline I seti(uint32_t x) { I i; SAGE_EACH i.v[l] = x; return i; }
inline F load(const float* p) { F f; std::memcpy(f.v, p, 64); return f; }
inline F load(const float* p, int n) { F f; SAGE_EACH f.v[l] = l < n ? p[l] : 0.0f; return f; }
inline void store(float* p, F f) { std::memcpy(p, f.v, 64); }
inline void store(float* p, F f, int n) { std::memcpy(p, f.v, n * sizeof(float)); }
inline I loadi(const void* p) { I i; std::memcpy(i.v, p, 64); return i; }
inline void storei(void* p, I i) { std::memcpy(p, i.v, 64); }
inline F add(F a, F b) { SAGE_EACH a.v[l] += b.v[l]; return a; }
inline F sub(F a, F b) { SAGE_EACH a.v[l] -= b.v[l]; return a; }
inline F mul(F a, F b) { SAGE_EACH a.v[l] *= b.v[l]; return a; }
inline F fused(F a, F b, F c) { SAGE_EACH a.v[l] = __builtin_fmaf(a.v[l], b.v[l], c.v[l]); return a; }
inline F div(F a, F b) { SAGE_EACH a.v[l] /= b.v[l]; return a; }
inline F least(F a, F b) { SAGE_EACH a.v[l] = a.v[l] < b.v[l] ? a.v[l] : b.v[l]; return a; }
inline I bits(F a) { I i; std::memcpy(i.v, a.v, 64); return i; }
inline F floats(I a) { F f; std::memcpy(f.v, a.v, 64); return f; }
inline I band(I a, I b) { SAGE_EACH a.v[l] &= b.v[l]; return a; }
inline I bor(I a, I b) { SAGE_EACH a.v[l] |= b.v[l]; return a; }
inline I bxor(I a, I b) { SAGE_EACH a.v[l] ^= b.v[l]; return a; }
inline I addi(I a, I b) { SAGE_EACH a.v[l] += b.v[l]; return a; }
inline I subi(I a, I b) { SAGE_EACH a.v[l] -= b.v[l]; return a; }
inline I leastu(I a, I b) { SAGE_EACH a.v[l] = std::min(a.v[l], b.v[l]); return a; }
inline I mostu(I a, I b) { SAGE_EACH a.v[l] = std::max(a.v[l], b.v[l]); return a; }
template <int k> I shl(I a) { SAGE_EACH a.v[l] <<= k; return a; }
template <int k> I shr(I a) { SAGE_EACH a.v[l] >>= k; return a; }
inline M is_less(F a, F b) { M m{0}; SAGE_EACH m.bits |= static_cast<uint32_t>(a.v[l] < b.v[l]) << l; return m; }
inline M is_lessi(I a, I b) {
  M m{0};
  SAGE_EACH m.bits |= static_cast<uint32_t>(static_cast<int32_t>(a.v[l]) < static_cast<int32_t>(b.v[l])) << l;
  return m;
}
inline F select(M m, F yes, F no) { SAGE_EACH no.v[l] = m.bits >> l & 1 ? yes.v[l] : no.v[l]; return no; }
inline I selecti(M m, I yes, I no) { SAGE_EACH no.v[l] = m.bits >> l & 1 ? yes.v[l] : no.v[l]; return no; }
inline uint32_t bits_of(M m) { return m.bits; }
inline M mask_of(uint32_t bits) { return M{bits & 0xffff}; }
inline I to_int(F a) {
  I i;
  SAGE_EACH {  // to the nearest, ties to even; what does not fit is 0x80000000, as the instructions have it
    const float x = __builtin_rintf(a.v[l]);
    i.v[l] = x >= -2147483648.0f && x < 2147483648.0f ? static_cast<uint32_t>(static_cast<int32_t>(x)) : 0x80000000u;
  }
  return i;
}
inline F to_float(I a) { F f; SAGE_EACH f.v[l] = static_cast<float>(static_cast<int32_t>(a.v[l])); return f; }
inline F round_down(F a) { SAGE_EACH a.v[l] = __builtin_floorf(a.v[l]); return a; }
inline I load_u8(const uint8_t* p) { I i; SAGE_EACH i.v[l] = p[l]; return i; }
inline I load_u16(const uint16_t* p) { I i; SAGE_EACH i.v[l] = p[l]; return i; }
inline void store_u8(uint8_t* p, I a) { SAGE_EACH p[l] = static_cast<uint8_t>(a.v[l]); }
inline void store_u16(uint16_t* p, I a) { SAGE_EACH p[l] = static_cast<uint16_t>(a.v[l]); }
inline H load_half(const uint16_t* p) { H h; std::memcpy(h.v, p, 32); return h; }
inline void store_half(uint16_t* p, H h) { std::memcpy(p, h.v, 32); }
inline void stream_half(uint16_t* p, H h) { store_half(p, h); }
inline void stream(float* p, F f) { store(p, f); }
inline void fence() {}
inline I wide_half(H h) { I i; SAGE_EACH i.v[l] = h.v[l]; return i; }
inline H low_halves(I a) { H h; SAGE_EACH h.v[l] = static_cast<uint16_t>(a.v[l]); return h; }
inline F from_fp16(H h) { F f; SAGE_EACH f.v[l] = ::sage::cpu::widen<Format::fp16>(h.v[l]); return f; }
inline H to_fp16(F a) { H h; SAGE_EACH h.v[l] = ::sage::cpu::narrow<Format::fp16>(a.v[l]); return h; }
// How sixteen codes of some bits lie in 2·bits bytes.
struct Unpacking {
  int bits;

  explicit Unpacking(int width) : bits(width) {}

  // Reads the codes; 16 bytes must be readable.
  I codes(const uint8_t* bytes) const {
    I found;
    SAGE_EACH {
      uint16_t two;
      const int at = l * bits;
      std::memcpy(&two, bytes + std::min(at / 8, 14), 2);
      found.v[l] = static_cast<uint32_t>(two >> (at - 8 * std::min(at / 8, 14))) & ((1u << bits) - 1);
    }
    return found;
  }
};

inline F look_up(F table, I at) { F f; SAGE_EACH f.v[l] = table.v[at.v[l] & 15]; return f; }
inline F look_up_128(const float* table, I at) { F f; SAGE_EACH f.v[l] = table[at.v[l]]; return f; }
inline I gather(const uint32_t* table, I at) { SAGE_EACH at.v[l] = table[at.v[l]]; return at; }
constexpr bool kHasPermutations = false;
inline I num_below_127(const uint32_t* levels, I x) {
  I at = seti(0);
  for (int num = 1; num < 128; levels += num, num *= 2)
    at = addi(addi(at, at), selecti(is_lessi(gather(levels, at), x), seti(1), seti(0)));
  return at;
}
template <int k> F across(F a) { F f; SAGE_EACH f.v[l] = a.v[l ^ k]; return f; }
inline D zeros() { return D{}; }
inline D add_wide(D d, F a) { SAGE_EACH d.v[l] += static_cast<double>(a.v[l]); return d; }
inline D add_squares(D d, F a) {
  SAGE_EACH d.v[l] += static_cast<double>(a.v[l]) * static_cast<double>(a.v[l]);
  return d;
}
inline double fold(D low, D high) {
  SAGE_EACH low.v[l] += high.v[l];
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) low.v[l] += low.v[l + half];
  return low.v[0];
}
inline uint32_t largest_of(I a) { return *std::max_element(a.v, a.v + 16); }
inline W wide(I a) { W w; SAGE_EACH w.v[l] = a.v[l]; return w; }
inline W multiply(W a, uint32_t b) { SAGE_EACH a.v[l] = (a.v[l] & 0xffffffffu) * b; return a; }
inline W high(W a) { SAGE_EACH a.v[l] >>= 32; return a; }
inline W xor3(W a, W b, uint32_t c) { SAGE_EACH a.v[l] ^= b.v[l] ^ c; return a; }
inline I narrow(W a) { I i; SAGE_EACH i.v[l] = static_cast<uint32_t>(a.v[l]); return i; }

#undef SAGE_EACH

#include "lanes_common.h"
