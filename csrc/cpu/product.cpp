// Torch op that writes a product of two thin matrices and subtracts it from a signal, on the CPU.
#include "product.h"

#include "../tensor_checks.h"
#include "team.h"

namespace sage::cpu {

void write_product_(Tensor out, std::optional<Tensor> signal, Tensor left, Tensor right, int64_t rank) {
  float* to = sage::out<float>(out, "out", out);
  float* own = signal ? sage::out<float>(*signal, "signal", out) : nullptr;
  const float *p = in<float>(left, "left", out), *q = in<float>(right, "right", out);
  check_product(out, signal, left, right, rank);
  write_product(isa(), torch_team(), p, q, left.numel() / rank, rank, right.numel() / rank, to, own);
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("write_product_", TORCH_BOX(&sage::cpu::write_product_)); }
