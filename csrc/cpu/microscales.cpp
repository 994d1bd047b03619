// Torch ops of the scales of blocks on the CPU.
#include "microscales.h"

#include "../microscale_checks.h"
#include "team.h"

namespace sage::cpu {

Tensor largest_of_blocks_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, int64_t block) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_block(block);
  const std::vector<int64_t> firsts = first_blocks(bounds, block);
  Tensor largest = empty<float>(firsts.back(), signal);
  largest_of_blocks(isa(), torch_team(),
                    {data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, bounds.data(), firsts.data(),
                     static_cast<int64_t>(bounds.size()) - 1, block, data<float>(largest)});
  return largest;
}

std::tuple<Tensor, Tensor> encode_tensor_scales(Tensor largest, std::vector<int64_t> bounds) {
  const float* from = in<float>(largest, "largest", largest);
  const int64_t num = largest.numel(), num_groups = static_cast<int64_t>(check_bounds(bounds, num));
  Tensor bytes = empty<uint8_t>(num_tensor_bytes(bounds), largest), scales = empty<float>(num, largest);
  write_tensor_scales(isa(), torch_team(), {bounds.data(), num_groups, from, nullptr, nullptr, data<float>(scales)},
                       data<uint8_t>(bytes));
  return {bytes, scales};
}

Tensor decode_tensor_scales(Tensor bytes, std::vector<int64_t> bounds) {
  check_tensor_scales(bytes, bounds);
  Tensor scales = empty<float>(bounds.back(), bytes);
  read_tensor_scales(isa(), torch_team(),
                       {bounds.data(), static_cast<int64_t>(bounds.size()) - 1, nullptr, nullptr, nullptr, data<float>(scales)},
                       data<uint8_t>(bytes));
  return scales;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("largest_of_blocks_", TORCH_BOX(&sage::cpu::largest_of_blocks_));
  m.impl("encode_tensor_scales", TORCH_BOX(&sage::cpu::encode_tensor_scales));
  m.impl("decode_tensor_scales", TORCH_BOX(&sage::cpu::decode_tensor_scales));
}
