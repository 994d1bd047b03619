// Torch ops of the sign methods on a GPU.
#include "cut_tensor.h"

namespace sage::cuda {

Tensor sign_bits_(Tensor signal, std::vector<int64_t> bounds, Tensor low, Tensor high, bool keep) {
  check_signal(signal, {});
  const int64_t n = signal.numel(), num_groups = static_cast<int64_t>(check_bounds(bounds, n));
  check_numel(low, num_groups, "low");
  check_numel(high, num_groups, "high");
  const float *lows = in<float>(low, "low", signal), *highs = in<float>(high, "high", signal);
  const OnDevice here(signal);
  const DeviceCut on(bounds, 0, signal, here.stream());
  Tensor bytes = empty<uint8_t>((n + 7) / 8, signal);
  sign_bits(on.cut, data<float>(signal), n, lows, highs, keep, data<uint8_t>(bytes), here.stream());
  return bytes;
}

std::tuple<Tensor, Tensor> momentum_signs_(Tensor momentum, Tensor signal, double beta) {
  const int64_t n = signal.numel();
  float* m = out<float>(momentum, "momentum", signal);
  const float* x = in<float>(signal, "signal", signal);
  check_numel(momentum, n, "momentum");
  STD_TORCH_CHECK(n == 0 || m != x, "momentum and signal are one vector: expected two");
  const OnDevice here(signal);
  Tensor bytes = empty<uint8_t>((n + 7) / 8, signal), largest = torch::stable::new_zeros(signal, {1});
  momentum_signs({m, x, static_cast<float>(beta), static_cast<float>(1 - beta), data<uint8_t>(bytes),
                  static_cast<uint32_t*>(largest.mutable_data_ptr())},
                 n, here.stream());
  return {bytes, largest};
}

void mean_signs_(Tensor out, Tensor bytes, Tensor low, Tensor high, std::vector<int64_t> bounds, int64_t divisor,
                 bool added, bool votes) {
  float* x = sage::out<float>(out, "out", out);
  const int64_t n = out.numel(), num_bytes = (n + 7) / 8, num_groups = static_cast<int64_t>(check_bounds(bounds, n));
  const int64_t num_payloads =
      check_payloads(bytes, num_bytes, {{"low", low}, {"high", high}}, num_groups, divisor, out);
  const OnDevice here(out);
  const DeviceCut on(bounds, 0, out, here.stream());
  const SignMean mean{x,         n,            static_cast<const float*>(low.const_data_ptr()),
                      static_cast<const float*>(high.const_data_ptr()),
                      static_cast<const uint8_t*>(bytes.const_data_ptr()),
                      num_bytes, num_payloads, divisor,
                      added,     votes};
  mean_signs(on.cut, mean, here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("sign_bits_", TORCH_BOX(&sage::cuda::sign_bits_));
  m.impl("momentum_signs_", TORCH_BOX(&sage::cuda::momentum_signs_));
  m.impl("mean_signs_", TORCH_BOX(&sage::cuda::mean_signs_));
}
