// Torch op that subtracts from a signal what was sent, on a GPU.
#include "stream.h"

namespace sage::cuda {

void keep_error_(Tensor signal, Tensor sent) {
  float* x = out<float>(signal, "signal", signal);
  const float* y = in<float>(sent, "sent", signal);
  check_numel(sent, signal.numel(), "sent");
  STD_TORCH_CHECK(signal.numel() == 0 || x != y, "signal and sent are one vector: expected two");
  const OnDevice here(signal);
  keep_error(x, y, signal.numel(), here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("keep_error_", TORCH_BOX(&sage::cuda::keep_error_)); }
