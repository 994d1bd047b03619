// Torch op of the largest magnitude of each block on the CPU.
#include "microscales.h"

#include "../microscale_checks.h"
#include "team.h"

namespace sage::cpu {

Tensor largest_of_blocks_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, int64_t block) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_block(block);
  const std::vector<int64_t> firsts = first_blocks(bounds, block);
  Tensor largest = empty<float>(firsts.back(), signal);
  largest_of_blocks(isa(), torch_team(),
                    {data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, bounds.data(), firsts.data(),
                     static_cast<int64_t>(bounds.size()) - 1, block, data<float>(largest)});
  return largest;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("largest_of_blocks_", TORCH_BOX(&sage::cpu::largest_of_blocks_)); }
