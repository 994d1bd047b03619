// Random bits that depend on a key and an element's position alone: Philox4x32-10 (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). Every thread count and device, and every cut of the vector, gives the same.
//
// A tile is 128 positions, which take 16 counters. Position i is position j = i % 128 of tile t = i / 128.
// Its bits are half h = j / 16 of the counter 16·t + j % 16: the low (h even) or the high (h odd) 16 bits of its word
// h / 2. So the elements of one register are the same word of 16 consecutive counters, and none has to be moved.
#pragma once

#include <limits>
#include <utility>
#include <vector>

#include "groups.h"

namespace sage::cpu {

constexpr int64_t kRandomTile = 128;
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxFactor0 = 0xd2511f53u, kPhiloxFactor1 = 0xcd9e8d57u;
constexpr uint32_t kPhiloxBump0 = 0x9e3779b9u, kPhiloxBump1 = 0xbb67ae85u;
inline constexpr uint32_t kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The positions of a vector's elements, on which their random bits depend: the elements from starts_r up to
// starts_{r+1} have the positions firsts_r, firsts_r + 1, and so on. The starts ascend from 0.
class Positions {
 public:
  explicit Positions(int64_t first) : Positions({0}, {first}) {}
  Positions(std::vector<int64_t> starts, std::vector<int64_t> firsts)
      : bounds_(std::move(starts)), firsts_(std::move(firsts)) {
    bounds_.push_back(std::numeric_limits<int64_t>::max());
  }

  Cursor cursor(int64_t i) const { return Cursor(bounds_.data(), static_cast<int64_t>(firsts_.size()), i); }
  int64_t of(int64_t run, int64_t i) const { return firsts_[run] + (i - bounds_[run]); }

 private:
  std::vector<int64_t> bounds_, firsts_;
};

}  // namespace sage::cpu

#define SAGE_KERNEL "philox_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// Writes the 16 random bits of the elements [first, first + n) of the vector, as 0 to 65535.
inline void random_bits(Isa isa, uint64_t key, int64_t first, int64_t n, int32_t* out) {
  alignas(64) uint16_t tile[kRandomTile];
  for (int64_t i = 0; i < n;) {
    const int64_t at = (first + i) % kRandomTile, num = std::min(n - i, kRandomTile - at);
    SAGE_CHOOSE(isa, random_tile, key, static_cast<uint64_t>((first + i) / kRandomTile), tile);
    for (int64_t j = 0; j < num; ++j) out[i + j] = tile[at + j];
    i += num;
  }
}

}  // namespace sage::cpu
