// The largest magnitude of each block of small floats, in the pass that adds the gradient. Each group begins a new block.
#pragma once

#include <vector>

#include "base.h"

namespace sage::cpu {

constexpr uint32_t kInfinite = 0x7f800000u, kNan = 0x7fc00000u;

struct LargestOfBlocks {
  float* signal;
  const float* grad;              // null: none
  const int64_t *bounds, *firsts; // of each group, and the end: its first element, and its first block
  int64_t num_groups, block;
  float* largest;                 // of each block; NaN where an element is not finite
};

}  // namespace sage::cpu

#define SAGE_KERNEL "microscales_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// The first block of each group, and the number of all.
inline std::vector<int64_t> first_blocks(const std::vector<int64_t>& bounds, int64_t block) {
  std::vector<int64_t> firsts{0};
  firsts.reserve(bounds.size());
  for (size_t g = 0; g + 1 < bounds.size(); ++g)
    firsts.push_back(firsts[g] + (bounds[g + 1] - bounds[g] + block - 1) / block);
  return firsts;
}

// signal += grad, where there is a gradient, and the largest magnitude of each block.
inline void largest_of_blocks(Isa isa, const Team& team, const LargestOfBlocks& x) {
  const int64_t num = x.firsts[x.num_groups], parts = std::min(std::max<int64_t>(num, 1), team.parts(x.bounds[x.num_groups]));
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, largest_of_blocks, x, num * part / parts, num * (part + 1) / parts);
  });
}

}  // namespace sage::cpu
