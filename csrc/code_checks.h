// Checks of the arguments of the codes of indices, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

// Each gap takes at least one byte, so this check limits the memory that an invalid `num` can allocate.
inline void check_gaps(int64_t num_bytes, int64_t num) {
  STD_TORCH_CHECK(num >= 0 && num <= num_bytes, num_bytes, " bytes cannot hold ", num, " gaps");
}

inline void check_bitmap(int64_t n) {
  STD_TORCH_CHECK(n >= 0 && n <= kMostElements, "n=", n, ": expected 0 to ", kMostElements);
}

inline void check_bitmap_bytes(int64_t num_bytes) {
  STD_TORCH_CHECK(num_bytes <= (kMostElements + 1) / 8, "bytes: ", num_bytes, " are too many for int32 indices");
}

}  // namespace sage
