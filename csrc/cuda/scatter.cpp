// Torch ops for the mean of sparse vectors on a GPU.
#include "stream.h"

namespace sage::cuda {

void scatter_mean_(Tensor out_N, Tensor values, Tensor indices, std::vector<int64_t> counts, bool /*zeroed*/) {
  float* sum = out<float>(out_N, "out", out_N);
  const float* value = in<float>(values, "values", out_N);
  const int32_t* index = in<int32_t>(indices, "indices", out_N);
  check_counts(counts, values.numel(), indices.numel());
  STD_TORCH_CHECK(counts.size() <= kMostRanks, counts.size(), " ranks: at most ", kMostRanks, " at a time");
  Starts starts{};
  for (int64_t count : counts) {
    starts.at[starts.num_ranks + 1] = starts.at[starts.num_ranks] + static_cast<int32_t>(count);
    ++starts.num_ranks;
  }
  const OnDevice here(out_N);
  scatter_mean(value, index, starts, sum, out_N.numel(), here.stream());
}

void clear_(Tensor out_N, Tensor indices) {
  float* x = out<float>(out_N, "out", out_N);
  const int32_t* at = in<int32_t>(indices, "indices", out_N);
  const OnDevice here(out_N);
  clear(x, out_N.numel(), at, indices.numel(), here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("scatter_mean_", TORCH_BOX(&sage::cuda::scatter_mean_));
  m.impl("clear_", TORCH_BOX(&sage::cuda::clear_));
}
