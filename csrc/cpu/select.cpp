// Torch ops for threshold selection on the CPU.
#include "select.h"

#include "team.h"
#include "tensors.h"

namespace sage::cpu {

std::tuple<Tensor, Tensor> select_(Tensor signal, std::optional<Tensor> grad, double threshold, bool keep, bool clear,
                                   std::optional<Tensor> histogram, int64_t every) {
  check_signal(signal, grad);
  STD_TORCH_CHECK(every >= 1, "every=", every, ": expected 1 or more");
  Pass pass{data<float>(signal)};
  pass.grad = grad ? data<float>(*grad) : nullptr;
  pass.limit = limit_of(static_cast<float>(threshold));
  pass.keep = keep;
  pass.clear = clear;
  pass.every = every;
  if (histogram) {
    pass.bins = out<int32_t>(*histogram, "histogram", signal);
    STD_TORCH_CHECK(histogram->numel() == kBins, "histogram has ", histogram->numel(), " bins: expected ", kBins);
  }
  TensorList list(signal);
  select(isa(), torch_team(), pass, signal.numel(), list);
  return list.tensors();
}

std::tuple<Tensor, Tensor, Tensor> select_groups_(Tensor signal, std::optional<Tensor> grad,
                                                  std::vector<int64_t> bounds, std::vector<double> thresholds,
                                                  bool keep) {
  check_signal(signal, grad);
  const size_t num_groups = check_bounds(bounds, signal.numel());
  STD_TORCH_CHECK(thresholds.size() == num_groups, "thresholds: expected ", num_groups, ", one for each group");
  Pass pass{data<float>(signal)};
  pass.grad = grad ? data<float>(*grad) : nullptr;
  pass.keep = keep;
  std::vector<uint32_t> limits;
  for (double threshold : thresholds) limits.push_back(limit_of(static_cast<float>(threshold)));
  TensorList list(signal);
  Tensor counts = empty<int64_t>(static_cast<int64_t>(num_groups), signal);
  select_groups(isa(), torch_team(), pass, bounds, limits, list, data<int64_t>(counts));
  auto [values, indices] = list.tensors();
  return {values, indices, counts};
}

Tensor count_above(Tensor x, double threshold) {
  const float* data_N = in<float>(x, "x", x);
  Tensor count = scalar<int64_t>(x);
  *data<int64_t>(count) = count_above(torch_team(), data_N, x.numel(), limit_of(static_cast<float>(threshold)));
  return count;
}

void histogram_(Tensor bins, Tensor x, int64_t every) {
  const float* data_N = in<float>(x, "x", x);
  int32_t* counts = out<int32_t>(bins, "bins", x);
  STD_TORCH_CHECK(every >= 1, "every=", every, ": expected 1 or more");
  STD_TORCH_CHECK(bins.numel() == kBins, "bins has ", bins.numel(), " elements: expected ", kBins);
  count_magnitudes(data_N, x.numel(), counts, every);
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("select_", TORCH_BOX(&sage::cpu::select_));
  m.impl("select_groups_", TORCH_BOX(&sage::cpu::select_groups_));
  m.impl("count_above", TORCH_BOX(static_cast<torch::stable::Tensor (*)(torch::stable::Tensor, double)>(
                            &sage::cpu::count_above)));
  m.impl("histogram_", TORCH_BOX(&sage::cpu::histogram_));
}
