// Torch op of the randomised Hadamard transform on the CPU.
#include "hadamard.h"

#include "../hadamard_checks.h"
#include "team.h"

namespace sage::cpu {

static_assert(kMostInTransform == kMostTransformed);

void hadamard_(Tensor x, std::vector<int64_t> bounds, int64_t bucket, int64_t key, bool inverse) {
  float* to = out<float>(x, "x", x);
  check_bounds(bounds, x.numel());
  check_transformed(bucket);
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1;
  hadamard(isa(), torch_team(), {to, buckets.data(), num, bucket, static_cast<uint64_t>(key), inverse});
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("hadamard_", TORCH_BOX(&sage::cpu::hadamard_)); }
