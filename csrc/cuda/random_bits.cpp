// Torch op for counter-based random bits on a GPU.
#include "stream.h"

namespace sage::cuda {

void random_bits_(Tensor out_N, int64_t key, int64_t first) {
  int32_t* drawn = out<int32_t>(out_N, "out", out_N);
  STD_TORCH_CHECK(first >= 0, "first=", first, ": expected 0 or more");
  const OnDevice here(out_N);
  random_bits(static_cast<uint64_t>(key), first, out_N.numel(), drawn, here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("random_bits_", TORCH_BOX(&sage::cuda::random_bits_)); }
