// Checks of the arguments of the microscaled formats' ops, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

inline void check_block(int64_t block) {
  STD_TORCH_CHECK(block >= 1 && block <= kMostElements, "block=", block, ": expected 1 element or more, up to ",
                  kMostElements);
}

// Bytes of NVFP4's scales of groups of blocks: 4 for each group and 1 for each block.
inline int64_t num_tensor_bytes(const std::vector<int64_t>& bounds) {
  return 4 * (static_cast<int64_t>(bounds.size()) - 1) + bounds.back();
}

inline void check_tensor_scales(const Tensor& bytes, const std::vector<int64_t>& bounds) {
  check<uint8_t>(bytes, "bytes", bytes);
  STD_TORCH_CHECK(!bounds.empty() && bounds.back() >= 0, "bounds: expected them from 0 to the number of blocks");
  check_bounds(bounds, bounds.back());
  check_numel(bytes, num_tensor_bytes(bounds), "bytes");
}

}  // namespace sage
