// Checks of the arguments of the microscaled formats' ops, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

inline void check_block(int64_t block) {
  STD_TORCH_CHECK(block >= 1 && block <= kMostElements, "block=", block, ": expected 1 element or more, up to ",
                  kMostElements);
}

}  // namespace sage
