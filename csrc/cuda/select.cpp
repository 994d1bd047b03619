// Torch ops for threshold selection on a GPU. The host waits only for the number of taken elements.
#include "segment_tensor.h"

namespace sage::cuda {

namespace {

unsigned long long* words(const Tensor& x) { return static_cast<unsigned long long*>(x.mutable_data_ptr()); }

// Runs a pass over the groups, which have these limits; adds the numbers taken to the counts, where there are counts.
std::tuple<Tensor, Tensor> select_by(const std::vector<int64_t>& bounds, const std::vector<int64_t>& limits, const Pass& pass,
                                     unsigned long long* counts, const Tensor& beside, Stream stream) {
  const DeviceSegments on(bounds, limits, beside, stream);
  const int64_t num_tiles = on.cut.num_tiles;
  const Tensor sums = zeros<int64_t>(num_tiles + 1, beside, stream);
  const Tensor staged = empty<float>(pass.n, beside), places = empty<int32_t>(pass.n, beside);
  select(on.cut, pass, counts, words(sums), data<float>(staged), data<int32_t>(places), stream);
  unsigned long long total = 0;
  if (num_tiles > 0) copy_to_host(&total, words(sums) + num_tiles - 1, sizeof total, stream);
  const auto num = static_cast<int64_t>(total & kMostElements);
  return {copied<float>(staged, num, stream), copied<int32_t>(places, num, stream)};
}

}  // namespace

std::tuple<Tensor, Tensor> select_(Tensor signal, std::optional<Tensor> grad, double threshold, bool keep, bool clear,
                                   std::optional<Tensor> histogram, int64_t every) {
  check_signal(signal, grad);
  STD_TORCH_CHECK(every >= 1, "every=", every, ": expected 1 or more");
  const int64_t n = signal.numel();
  Pass pass{data<float>(signal), grad ? data<float>(*grad) : nullptr, n, keep, clear, nullptr, every};
  if (histogram) {
    pass.bins = out<int32_t>(*histogram, "histogram", signal);
    STD_TORCH_CHECK(histogram->numel() == kBins, "histogram has ", histogram->numel(), " bins: expected ", kBins);
  }
  const OnDevice here(signal);
  return select_by({0, n}, {limit_of(threshold)}, pass, nullptr, signal, here.stream());
}

std::tuple<Tensor, Tensor, Tensor> select_groups_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                                  std::vector<double> thresholds, bool keep) {
  check_signal(signal, grad);
  const size_t num_groups = check_bounds(bounds, signal.numel());
  STD_TORCH_CHECK(thresholds.size() == num_groups, "thresholds: expected ", num_groups, ", one for each group");
  const Pass pass{data<float>(signal), grad ? data<float>(*grad) : nullptr, signal.numel(), keep, false, nullptr, 1};
  std::vector<int64_t> limits;
  for (double threshold : thresholds) limits.push_back(limit_of(threshold));
  const OnDevice here(signal);
  Tensor counts = zeros<int64_t>(static_cast<int64_t>(num_groups), signal, here.stream());
  auto [values, indices] = select_by(bounds, limits, pass, words(counts), signal, here.stream());
  return {values, indices, counts};
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
  m.impl("select_groups_", TORCH_BOX(&sage::cuda::select_groups_));
  m.impl("count_above", TORCH_BOX(&sage::cuda::count_above_op));
  m.impl("histogram_", TORCH_BOX(&sage::cuda::histogram_));
}
