// Random bits that depend on a key and an element's position alone: Philox4x32-10, in the layout of cpu/philox.h.
#pragma once

#include "device.cuh"

namespace sage::cuda {

constexpr int kRandomTile = 128, kTileCounters = 16;  // elements of a tile, and the counters that they take

// Writes the four words of a counter.
__device__ __forceinline__ void philox(uint64_t key, uint64_t number, uint32_t (&words)[4]) {
  uint32_t x0 = static_cast<uint32_t>(number), x1 = static_cast<uint32_t>(number >> 32), x2 = 0, x3 = 0;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9e3779b9u, key1 += 0xbb67ae85u) {
    const uint64_t product0 = static_cast<uint64_t>(x0) * 0xd2511f53u, product1 = static_cast<uint64_t>(x2) * 0xcd9e8d57u;
    x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x1 = static_cast<uint32_t>(product1);
    x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x3 = static_cast<uint32_t>(product0);
  }
  words[0] = x0, words[1] = x1, words[2] = x2, words[3] = x3;
}

// Writes the 8 times 16 random bits of counter `number` of the whole vector: half h belongs to element 16·h + number % 16
// of tile number / 16.
__device__ __forceinline__ void philox(uint64_t key, uint64_t number, uint16_t (&halves)[8]) {
  uint32_t words[4];
  philox(key, number, words);
  for (int h = 0; h < 8; ++h) halves[h] = static_cast<uint16_t>(words[h / 2] >> (16 * (h % 2)));
}

}  // namespace sage::cuda
