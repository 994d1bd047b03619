// Torch op of the randomised Hadamard transform on a GPU.
#include "cut_tensor.h"

#include "../hadamard_checks.h"

namespace sage::cuda {

static_assert(kMostTransformed == sage::kMostTransformed);

void hadamard_(Tensor x, std::vector<int64_t> bounds, int64_t bucket, int64_t key, bool inverse) {
  float* to = out<float>(x, "x", x);
  check_bounds(bounds, x.numel());
  check_transformed(bucket);
  const OnDevice here(x);
  const DeviceCut on(bounds, bucket, x, here.stream());
  hadamard(on.cut, {to, static_cast<uint64_t>(key), inverse}, here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("hadamard_", TORCH_BOX(&sage::cuda::hadamard_)); }
