// Torch op for random bits on the CPU.
#include "draw.h"

#include "../tensor_checks.h"

namespace sage::cpu {

void draw_(Tensor out, int64_t seed, int64_t bits) {
  int32_t* drawn = sage::out<int32_t>(out, "out", out);
  STD_TORCH_CHECK(bits >= 1 && bits <= 24, "bits=", bits, ": expected 1 to 24");
  draw(static_cast<uint32_t>(seed), static_cast<int>(bits), drawn, out.numel());
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("draw_", TORCH_BOX(&sage::cpu::draw_)); }
