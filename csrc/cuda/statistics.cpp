// Torch op for statistics of groups on a GPU.
#include "cut_tensor.h"

namespace sage::cuda {

Tensor statistics_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, int64_t kind) {
  check_signal(signal, grad);
  const int64_t num_groups = static_cast<int64_t>(check_bounds(bounds, signal.numel()));
  STD_TORCH_CHECK(kind >= 0 && kind <= 3, "kind=", kind, ": expected 0 to 3");
  const OnDevice here(signal);
  const DeviceCut on(bounds, 0, signal, here.stream());
  const Tensor pieces = on.pieces();
  const int64_t sizes[2] = {4, num_groups}, strides[2] = {num_groups, 1};
  Tensor rows = empty(2, sizes, strides, ScalarType::Double, signal);
  statistics(static_cast<Kind>(kind), on.cut, data<float>(signal), grad ? data<float>(*grad) : nullptr,
             static_cast<Statistic*>(pieces.mutable_data_ptr()), static_cast<double*>(rows.mutable_data_ptr()),
             here.stream());
  return rows;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("statistics_", TORCH_BOX(&sage::cuda::statistics_)); }
