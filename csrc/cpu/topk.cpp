// Exact top-k of each group of a vector on the CPU, for torch.
#include "topk.h"

#include "team.h"

namespace sage::cpu {

std::tuple<Tensor, Tensor> top_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                std::vector<int64_t> counts, bool keep, bool clear, double low, double high) {
  check_signal(signal, grad);
  const int64_t k = check_groups(bounds, counts, signal.numel());
  Tensor values = empty<float>(k, signal), indices = empty<int32_t>(k, signal);
  float* value = data<float>(values);
  int32_t* index = data<int32_t>(indices);
  const Team team = torch_team();
  for (size_t group = 0; group < counts.size(); ++group) {
    const int64_t begin = bounds[group];
    Pass pass{data<float>(signal) + begin};
    pass.grad = grad ? data<float>(*grad) + begin : nullptr;
    pass.keep = keep;
    pass.clear = clear;
    top(isa(), team, pass, bounds[group + 1] - begin, counts[group], begin, value, index,
        limit_of(static_cast<float>(low)), limit_of(static_cast<float>(high)));
    value += counts[group];
    index += counts[group];
  }
  return {values, indices};
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("top_", TORCH_BOX(&sage::cpu::top_)); }
