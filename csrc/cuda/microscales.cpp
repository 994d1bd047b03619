// Torch ops of the scales of blocks on a GPU.
#include "cut_tensor.h"

#include "../microscale_checks.h"

namespace sage::cuda {

Tensor largest_of_blocks_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, int64_t block) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_block(block);
  const OnDevice here(signal);
  const DeviceCut on(bounds, block, signal, here.stream());
  Tensor largest = empty<float>(on.cut.num_buckets, signal);
  largest_of_blocks(on.cut, data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, data<float>(largest),
                    here.stream());
  return largest;
}

std::tuple<Tensor, Tensor> encode_tensor_scales(Tensor largest, std::vector<int64_t> bounds) {
  const float* from = in<float>(largest, "largest", largest);
  const int64_t num = largest.numel();
  check_bounds(bounds, num);
  const OnDevice here(largest);
  const DeviceCut on(bounds, 0, largest, here.stream());
  Tensor bytes = empty<uint8_t>(num_tensor_bytes(bounds), largest), scales = empty<float>(num, largest);
  const Tensor found = zeros<int32_t>(on.cut.num_groups, largest, here.stream());
  write_tensor_scales(on.cut, num, from, static_cast<uint32_t*>(found.mutable_data_ptr()), data<uint8_t>(bytes),
                       data<float>(scales), here.stream());
  return {bytes, scales};
}

Tensor decode_tensor_scales(Tensor bytes, std::vector<int64_t> bounds) {
  check_tensor_scales(bytes, bounds);
  const OnDevice here(bytes);
  const DeviceCut on(bounds, 0, bytes, here.stream());
  Tensor scales = empty<float>(bounds.back(), bytes);
  read_tensor_scales(on.cut, bounds.back(), data<uint8_t>(bytes), data<float>(scales), here.stream());
  return scales;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("largest_of_blocks_", TORCH_BOX(&sage::cuda::largest_of_blocks_));
  m.impl("encode_tensor_scales", TORCH_BOX(&sage::cuda::encode_tensor_scales));
  m.impl("decode_tensor_scales", TORCH_BOX(&sage::cuda::decode_tensor_scales));
}
