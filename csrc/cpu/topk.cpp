// Torch op for the exact top-k of each group of a vector on the CPU.
#include "topk.h"

#include "team.h"
#include "tensors.h"

namespace sage::cpu {

std::tuple<Tensor, Tensor> top_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                std::vector<int64_t> counts, bool keep, bool clear, double low, double high) {
  check_signal(signal, grad);
  const int64_t k = check_groups(bounds, counts, signal.numel());
  TensorList list(signal);
  if (counts.size() > 1) list.reserve(k);  // a single group grows the list as needed
  const Team team = torch_team();
  for (size_t group = 0; group < counts.size(); ++group) {
    const int64_t begin = bounds[group];
    Pass pass{data<float>(signal) + begin};
    pass.grad = grad ? data<float>(*grad) + begin : nullptr;
    pass.keep = keep;
    pass.clear = clear;
    top(isa(), team, pass, bounds[group + 1] - begin, counts[group], begin, list, limit_of(static_cast<float>(low)),
        limit_of(static_cast<float>(high)));
  }
  return list.tensors();
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("top_", TORCH_BOX(&sage::cpu::top_)); }
