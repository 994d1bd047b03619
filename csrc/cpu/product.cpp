// Torch op that writes a product of two thin matrices and subtracts it from a signal, on the CPU.
#include "product.h"

#include "../tensor_checks.h"
#include "team.h"

namespace sage::cpu {

void write_product_(Tensor out, std::optional<Tensor> signal, Tensor left, Tensor right, int64_t rank) {
  float* to = sage::out<float>(out, "out", out);
  float* own = signal ? sage::out<float>(*signal, "signal", out) : nullptr;
  const float *p = in<float>(left, "left", out), *q = in<float>(right, "right", out);
  STD_TORCH_CHECK(rank >= 1, "rank: ", rank, ": expected 1 or more");
  STD_TORCH_CHECK(left.numel() % rank == 0, "left has ", left.numel(), " elements: expected a multiple of rank ", rank);
  STD_TORCH_CHECK(right.numel() % rank == 0, "right has ", right.numel(), " elements: expected a multiple of rank ", rank);
  const int64_t rows = left.numel() / rank, columns = right.numel() / rank;
  check_numel(out, rows * columns, "out");
  if (signal) check_numel(*signal, rows * columns, "signal");
  STD_TORCH_CHECK(out.numel() == 0 || own != to, "signal and out are one vector: expected two");
  write_product(isa(), torch_team(), p, q, rows, rank, columns, to, own);
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("write_product_", TORCH_BOX(&sage::cpu::write_product_)); }
