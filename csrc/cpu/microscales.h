// The scales of blocks of small floats. The largest magnitude of each block is found in the pass that adds the gradient; each
// group begins a new block. NVFP4's scales are s·t: t is a float32 of a group, and s an 8-bit float (E4M3) of a block.
#pragma once

#include "levels.h"

namespace sage::cpu {

constexpr uint32_t kInfinite = 0x7f800000u, kNan = 0x7fc00000u;
constexpr float kLargestE2m1 = 6, kLargestE4m3 = 448;

struct LargestOfBlocks {
  float* signal;
  const float* grad;              // null: none
  const int64_t *bounds, *firsts; // of each group, and the end: its first element, and its first block
  int64_t num_groups, block;
  float* largest;                 // of each block; NaN where an element is not finite
};

struct TensorScales {
  const int64_t* bounds;  // of the groups, in blocks
  int64_t num_groups;
  const float* largest;  // of each block
  const float* tensor;   // t of each group
  uint8_t* shares;       // s of each block
  float* scales;         // 4·s·t of each block, which is what Codec::e2m1 has as the scale
};

}  // namespace sage::cpu

#define SAGE_KERNEL "microscales_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// signal += grad, where there is a gradient, and the largest magnitude of each block.
inline void largest_of_blocks(Isa isa, const Team& team, const LargestOfBlocks& x) {
  const int64_t num = x.firsts[x.num_groups], parts = std::min(std::max<int64_t>(num, 1), team.parts(x.bounds[x.num_groups]));
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, largest_of_blocks, x, num * part / parts, num * (part + 1) / parts);
  });
}

// Writes t of each group in the host's byte order, s of each block behind them, and the scales.
inline void write_tensor_scales(Isa isa, const Team& team, TensorScales x, uint8_t* bytes) {
  std::vector<float> tensor(x.num_groups);
  for (int64_t g = 0; g < x.num_groups; ++g)
    tensor[g] = SAGE_CHOOSE(isa, largest_finite, x.largest + x.bounds[g], x.bounds[g + 1] - x.bounds[g]) /
                (kLargestE2m1 * kLargestE4m3);
  const int64_t head = x.num_groups * static_cast<int64_t>(sizeof(float)), num = x.bounds[x.num_groups];
  if (head) std::memcpy(bytes, tensor.data(), head);
  x.tensor = tensor.data();
  x.shares = bytes + head;
  const int64_t parts = team.parts(num);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, encode_shares, x, part_begin(num, parts, part), part_begin(num, parts, part + 1));
  });
}

// Computes the scales from what write_tensor_scales wrote; `bytes` may begin anywhere.
inline void read_tensor_scales(Isa isa, const Team& team, TensorScales x, uint8_t* bytes) {
  std::vector<float> tensor(x.num_groups);
  const int64_t head = x.num_groups * static_cast<int64_t>(sizeof(float)), num = x.bounds[x.num_groups];
  if (head) std::memcpy(tensor.data(), bytes, head);
  x.tensor = tensor.data();
  x.shares = bytes + head;
  const int64_t parts = team.parts(num);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, decode_shares, x, part_begin(num, parts, part), part_begin(num, parts, part + 1));
  });
}

}  // namespace sage::cpu
