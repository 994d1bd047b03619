// Torch ops for threshold selection on a GPU. The host waits only for the number of taken elements.
#include "stream.h"

namespace sage::cuda {

std::tuple<Tensor, Tensor> select_(Tensor signal, std::optional<Tensor> grad, double threshold, bool keep, bool clear,
                                   std::optional<Tensor> histogram, int64_t every) {
  check_signal(signal, grad);
  STD_TORCH_CHECK(every >= 1, "every=", every, ": expected 1 or more");
  const int64_t n = signal.numel(), num_tiles = tiles(n);
  Pass pass{data<float>(signal), grad ? data<float>(*grad) : nullptr, n, limit_of(threshold), keep, clear, nullptr,
            every};
  if (histogram) {
    pass.bins = out<int32_t>(*histogram, "histogram", signal);
    STD_TORCH_CHECK(histogram->numel() == kBins, "histogram has ", histogram->numel(), " bins: expected ", kBins);
  }
  const OnDevice here(signal);
  Tensor staged = empty<float>(num_tiles * kTile, signal), places = empty<int32_t>(num_tiles * kTile, signal);
  Tensor counts = empty<int32_t>(num_tiles + 1, signal);
  const Stage stage{data<float>(staged), data<int32_t>(places), data<int32_t>(counts)};
  select(pass, stage, here.stream());
  int32_t total = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&total, stage.counts + num_tiles, sizeof total, cudaMemcpyDeviceToHost, here.stream()));
  STD_CUDA_CHECK(cudaStreamSynchronize(here.stream()));
  Tensor values = empty<float>(total, signal), indices = empty<int32_t>(total, signal);
  if (total > 0) move(stage, n, data<float>(values), data<int32_t>(indices), here.stream());
  return {values, indices};
}

Tensor count_above_op(Tensor x, double threshold) {
  const float* data_N = in<float>(x, "x", x);
  const OnDevice here(x);
  Tensor count = torch::stable::new_zeros(x, {}, ScalarType::Long);
  count_above(data_N, x.numel(), limit_of(threshold), static_cast<unsigned long long*>(count.mutable_data_ptr()),
              here.stream());
  return count;
}

void histogram_(Tensor bins, Tensor x, int64_t every) {
  const float* data_N = in<float>(x, "x", x);
  int32_t* counts = out<int32_t>(bins, "bins", x);
  STD_TORCH_CHECK(every >= 1, "every=", every, ": expected 1 or more");
  STD_TORCH_CHECK(bins.numel() == kBins, "bins has ", bins.numel(), " elements: expected ", kBins);
  const OnDevice here(x);
  count_magnitudes(data_N, x.numel(), counts, every, here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("select_", TORCH_BOX(&sage::cuda::select_));
  m.impl("count_above", TORCH_BOX(&sage::cuda::count_above_op));
  m.impl("histogram_", TORCH_BOX(&sage::cuda::histogram_));
}
