// Torch op of the largest magnitude of each block on a GPU.
#include "cut_tensor.h"

#include "../microscale_checks.h"

namespace sage::cuda {

Tensor largest_of_blocks_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, int64_t block) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_block(block);
  const OnDevice here(signal);
  const DeviceCut on(bounds, block, signal, here.stream());
  Tensor largest = empty<float>(on.cut.num_buckets, signal);
  largest_of_blocks(on.cut, data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, data<float>(largest),
                    here.stream());
  return largest;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("largest_of_blocks_", TORCH_BOX(&sage::cuda::largest_of_blocks_)); }
