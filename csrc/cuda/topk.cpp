// Torch op for the exact top-k of each group of a vector on a GPU.
#include "segment_tensor.h"

namespace sage::cuda {

std::tuple<Tensor, Tensor> top_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                std::vector<int64_t> counts, bool keep, bool clear, double, double) {
  check_signal(signal, grad);
  const int64_t k = check_groups(bounds, counts, signal.numel());
  const OnDevice here(signal);
  std::vector<int64_t> before{0};  // elements of the groups before
  for (int64_t count : counts) before.push_back(before.back() + count);
  const DeviceSegments on(bounds, before, signal, here.stream());
  const Tensor searches = on.searches(1), sums = on.sums();
  Tensor values = empty<float>(k, signal), indices = empty<int32_t>(k, signal);
  const Pass pass{data<float>(signal), grad ? data<float>(*grad) : nullptr, signal.numel(), keep, clear, nullptr, 1};
  top(on.cut, pass, static_cast<Search*>(searches.mutable_data_ptr()),
      static_cast<unsigned long long*>(sums.mutable_data_ptr()), data<float>(values), data<int32_t>(indices),
      here.stream());
  return {values, indices};
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("top_", TORCH_BOX(&sage::cuda::top_)); }
