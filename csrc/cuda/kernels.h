// What the CUDA side can launch, without torch: `x.cu` defines it, `x.cpp` makes torch ops of it, and the emulated
// tests call it too. Pointers are to device memory. Nothing here waits for the device.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__) || defined(SAGE_CUDA_BINDING)
#include <cuda_runtime_api.h>
using Stream = cudaStream_t;
#else
using Stream = const void*;
#endif

namespace sage::cuda {

constexpr int kThreads = 256;
constexpr int kItems = 16;  // elements of a thread, loaded before the first is used: that many reads are in flight
constexpr int kTile = kThreads * kItems;
inline int64_t tiles(int64_t n) { return (n + kTile - 1) / kTile; }

constexpr int kGroup = 64, kBinShift = 17;  // of a histogram, as on the CPU
constexpr int kBins = 1 << (31 - kBinShift);

// The magnitude from which `not |x| < threshold` holds: everything for 0, a negative number and NaN.
inline uint32_t limit_of(double threshold) {
  const float rounded = static_cast<float>(threshold);
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return rounded > 0 ? bits : 0;
}

struct Pass {
  float* signal;
  float* grad;  // added, where there is one
  int64_t n;
  uint32_t limit;  // magnitude from which an element is taken
  bool keep;       // whether 0 is left where an element was taken
  bool clear;      // whether 0 is left in the gradient
  int32_t* bins;   // counts of magnitudes in every `every`-th group of 64, where there are bins
  int64_t every;
};

// Where a tile's elements wait: its own kTile places of as many as there are elements.
struct Stage {
  float* values;
  int32_t* indices;
  int32_t* counts;  // of each tile, and one more
};

// Stage what a pass takes. The last of the stage's counts then says how many that are, and `move` brings them together.
void select(const Pass& pass, const Stage& stage, Stream stream);
void move(const Stage& stage, int64_t n, float* values, int32_t* indices, Stream stream);

// Adds to the count how many of n magnitudes are at or above a limit, or to the bins what there are.
void count_above(const float* x, int64_t n, uint32_t limit, unsigned long long* count, Stream stream);
void count_magnitudes(const float* x, int64_t n, int32_t* bins, int64_t every, Stream stream);

// signal += gradient, and its k largest to the output, `base` added to the indices. Workspace: kSearch words, and of
// `above` and `equal` a place for each tile and one more.
constexpr int kDigits = 2048, kSearch = kDigits + 2;
void top(Pass pass, int64_t k, int64_t base, uint32_t* search, int32_t* above, int32_t* equal, float* values,
         int32_t* indices, Stream stream);

// Where each rank's elements begin, and the end. By value: what it is launched with needs no copy of its own.
constexpr int kMostRanks = 512;
struct Starts {
  int32_t num_ranks;
  int32_t at[kMostRanks + 1];
};

// out = Σ_w scatter(values_w, at_w) / W; each rank's indices ascend.
void scatter_mean(const float* values, const int32_t* at, const Starts& starts, float* out, int64_t n, Stream stream);
void clear(float* out, int64_t n, const int32_t* at, int64_t num, Stream stream);

void pack(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes, Stream stream);
void unpack(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes, Stream stream);
void pack_signs(const float* x, int64_t n, uint8_t* bytes, Stream stream);
void unpack_signs(const uint8_t* bytes, int64_t n, float scale, float* x, Stream stream);

}  // namespace sage::cuda
