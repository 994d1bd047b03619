// Torch op for the exact top-k of each group of a vector on a GPU.
#include "stream.h"

namespace sage::cuda {

std::tuple<Tensor, Tensor> top_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                std::vector<int64_t> counts, bool keep, bool clear, double, double) {
  check_signal(signal, grad);
  const int64_t k = check_groups(bounds, counts, signal.numel());
  const OnDevice here(signal);
  Tensor values = empty<float>(k, signal), indices = empty<int32_t>(k, signal);
  const int64_t most_tiles = tiles(signal.numel());
  Tensor above = empty<int32_t>(most_tiles + 1, signal), equal = empty<int32_t>(most_tiles + 1, signal);
  Tensor search = empty<int32_t>(kSearch, signal);
  float* value = data<float>(values);
  int32_t* index = data<int32_t>(indices);
  for (size_t group = 0; group < counts.size(); ++group) {
    const int64_t begin = bounds[group];
    const Pass pass{data<float>(signal) + begin,  grad ? data<float>(*grad) + begin : nullptr,
                    bounds[group + 1] - begin, 0, keep, clear, nullptr, 1};
    top(pass, counts[group], begin, static_cast<uint32_t*>(search.mutable_data_ptr()), data<int32_t>(above),
        data<int32_t>(equal), value, index, here.stream());
    value += counts[group];
    index += counts[group];
  }
  return {values, indices};
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("top_", TORCH_BOX(&sage::cuda::top_)); }
