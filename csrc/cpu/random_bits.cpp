// Torch op for random bits on the CPU.
#include "philox.h"

#include "../tensor_checks.h"

namespace sage::cpu {

void random_bits_(Tensor out, int64_t key, int64_t first) {
  int32_t* drawn = sage::out<int32_t>(out, "out", out);
  STD_TORCH_CHECK(first >= 0, "first=", first, ": expected 0 or more");
  random_bits(isa(), static_cast<uint64_t>(key), first, out.numel(), drawn);
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("random_bits_", TORCH_BOX(&sage::cpu::random_bits_)); }
