// Random bits identical to those of torch's CPU generator: the Mersenne twister (Matsumoto & Nishimura, 1998).
#pragma once

#include "base.h"

namespace sage::cpu {

constexpr int kTwistState = 624, kTwistAhead = 397, kTwistBack = kTwistState - kTwistAhead;

inline uint32_t twisted(uint32_t upper, uint32_t lower) {
  return (((upper & 0x80000000u) | (lower & 0x7fffffffu)) >> 1) ^ (lower & 1 ? 0x9908b0dfu : 0u);
}

// Computes the next state. The array has room for one more word at its end, because the last word depends on the first.
SAGE_CLONES static void twist(uint32_t* state) {
  int i = 0;
  for (; i < kTwistBack; ++i) state[i] = state[i + kTwistAhead] ^ twisted(state[i], state[i + 1]);
  state[kTwistState] = state[0];
  for (; i < kTwistState; ++i) state[i] = state[i - kTwistBack] ^ twisted(state[i], state[i + 1]);
}

SAGE_CLONES static void temper(const uint32_t* state, int64_t n, uint32_t mask, int32_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t y = state[i];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    y ^= y >> 18;
    out[i] = static_cast<int32_t>(y & mask);
  }
}

// Writes the low `bits` bits (1 to 31) of n draws from this seed.
inline void draw(uint32_t seed, int bits, int32_t* out, int64_t n) {
  uint32_t state[kTwistState + 1];
  state[0] = seed;
  for (uint32_t i = 1; i < kTwistState; ++i) state[i] = 1812433253u * (state[i - 1] ^ state[i - 1] >> 30) + i;
  for (int64_t i = 0; i < n; i += kTwistState) {
    twist(state);
    temper(state, std::min<int64_t>(kTwistState, n - i), (1u << bits) - 1, out + i);
  }
}

}  // namespace sage::cpu
