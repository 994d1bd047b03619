// Packs codes of 1 to 8 bits without gaps: code i starts at bit i·b of the bytes, low bit first.
#pragma once

#include "base.h"

namespace sage::cpu {

inline int64_t packed_bytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

// Returns a 64-bit word that masks the low `bits` bits of each of its 8 bytes.
inline uint64_t lanes_mask(int bits) { return 0x0101010101010101u * ((1u << bits) - 1); }

inline void pack_scalar(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes) {
  uint32_t held = 0;
  int num_held = 0;
  for (int64_t i = 0; i < n; ++i) {
    held |= static_cast<uint32_t>(codes[i] & ((1u << bits) - 1)) << num_held;
    num_held += bits;
    for (; num_held >= 8; num_held -= 8, held >>= 8) *bytes++ = static_cast<uint8_t>(held);
  }
  if (num_held > 0) *bytes = static_cast<uint8_t>(held);
}

inline void unpack_scalar(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes) {
  uint32_t held = 0;
  int num_held = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (; num_held < bits; num_held += 8) held |= static_cast<uint32_t>(*bytes++) << num_held;
    codes[i] = static_cast<uint8_t>(held & ((1u << bits) - 1));
    held >>= bits;
    num_held -= bits;
  }
}

#if SAGE_X86

// Eight codes are `bits` whole bytes, and one instruction (pext, pdep) gathers or scatters their bits.
__attribute__((target("bmi2"))) inline void pack_bmi2(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes) {
  const uint64_t mask = lanes_mask(bits);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8, bytes += bits) {
    uint64_t eight;
    std::memcpy(&eight, codes + i, 8);
    eight = _pext_u64(eight, mask);
    std::memcpy(bytes, &eight, bits);
  }
  pack_scalar(codes + i, n - i, bits, bytes);
}

__attribute__((target("bmi2"))) inline void unpack_bmi2(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes) {
  const uint64_t mask = lanes_mask(bits);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8, bytes += bits) {
    uint64_t eight = 0;
    std::memcpy(&eight, bytes, bits);
    eight = _pdep_u64(eight, mask);
    std::memcpy(codes + i, &eight, 8);
  }
  unpack_scalar(bytes, n - i, bits, codes + i);
}

#endif  // SAGE_X86

inline void pack(Isa isa, const uint8_t* codes, int64_t n, int bits, uint8_t* bytes) {
#if SAGE_X86
  if (isa != Isa::scalar) return pack_bmi2(codes, n, bits, bytes);
#endif
  pack_scalar(codes, n, bits, bytes);
}

inline void unpack(Isa isa, const uint8_t* bytes, int64_t n, int bits, uint8_t* codes) {
#if SAGE_X86
  if (isa != Isa::scalar) return unpack_bmi2(bytes, n, bits, codes);
#endif
  unpack_scalar(bytes, n, bits, codes);
}

}  // namespace sage::cpu
