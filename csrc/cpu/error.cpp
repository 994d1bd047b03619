// Torch op that subtracts from a signal what was sent, on the CPU.
#include "error.h"

#include "../tensor_checks.h"
#include "team.h"

namespace sage::cpu {

void keep_error_(Tensor signal, Tensor sent) {
  float* x = sage::out<float>(signal, "signal", signal);
  const float* y = in<float>(sent, "sent", signal);
  check_numel(sent, signal.numel(), "sent");
  STD_TORCH_CHECK(signal.numel() == 0 || x != y, "signal and sent are one vector: expected two");
  keep_error(torch_team(), x, y, signal.numel());
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("keep_error_", TORCH_BOX(&sage::cpu::keep_error_)); }
