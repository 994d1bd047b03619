// Checks of the arguments of the Hadamard transform, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

constexpr int64_t kLeastTransformed = 16, kMostTransformed = 8192;  // elements of a bucket

inline void check_transformed(int64_t bucket) {
  STD_TORCH_CHECK(bucket >= kLeastTransformed && bucket <= kMostTransformed && (bucket & (bucket - 1)) == 0,
                  "bucket=", bucket, ": expected a power of two from ", kLeastTransformed, " to ", kMostTransformed);
}

}  // namespace sage
