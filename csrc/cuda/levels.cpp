// Torch ops of the quantisers on a GPU.
#include "cut_tensor.h"

namespace sage::cuda {

namespace {

// Whether the buckets are quantised in one pass, each in the registers of one block.
bool is_by_blocks(const Coding& coding, const DeviceCut& on) {
  return coding.codec <= Codec::e5m2 && on.longest() <= kMostInBlock;
}

}  // namespace

std::tuple<Tensor, Tensor> quantise_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                     int64_t bucket, int64_t codec, int64_t levels, int64_t norm,
                                     std::optional<Tensor> scales_P, std::optional<Tensor> limits, int64_t key,
                                     std::vector<int64_t> starts, std::vector<int64_t> firsts, bool keep) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_quantisation(bucket, norm, scales_P.has_value() && grad.has_value());
  check_positions(starts, firsts, signal.numel());
  const Coding coding = coding_of<Coding>(codec, levels);
  const int64_t n = signal.numel();
  const OnDevice here(signal);
  const DeviceCut on(bounds, bucket, signal, here.stream(), starts, firsts);
  if (limits) check_numel(*limits, on.cut.num_buckets, "limits");
  if (scales_P) check_numel(*scales_P, on.cut.num_buckets, "scales");
  Tensor found = scales_P ? *scales_P : empty<float>(on.cut.num_buckets, signal);
  Tensor bytes = empty<uint8_t>(coding.num_bytes(n), signal);
  if (!scales_P && !limits && norm == 3 && is_by_blocks(coding, on) && (keep || !grad)) {
    quantise_blocks(on.cut, on.longest(),
                    {coding, data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, n, nullptr, nullptr, 0,
                     1, keep, data<uint8_t>(bytes), data<float>(found)},
                    here.stream());
    return {bytes, found};
  }
  if (!scales_P) {
    const Tensor pieces = on.pieces();
    scales(norm == 2, on.cut, data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr,
           static_cast<Statistic*>(pieces.mutable_data_ptr()), data<float>(found), here.stream());
  }
  const Quantisation x{coding,
                       data<float>(signal),
                       n,
                       in<float>(found, "scales", signal),
                       limits ? in<float>(*limits, "limits", signal) : nullptr,
                       static_cast<uint64_t>(key),
                       on.positions,
                       keep,
                       data<uint8_t>(bytes)};
  quantise(on.cut, x, here.stream());
  return {bytes, found};
}

void quantise_mean_(Tensor signal, std::optional<Tensor> grad, Tensor bytes, Tensor scales_WP, std::vector<int64_t> bounds,
                    int64_t bucket, int64_t codec, int64_t levels, int64_t divisor, Tensor out_bytes, Tensor out_scales) {
  check_signal(signal, grad);
  const int64_t n = signal.numel();
  check_bounds(bounds, n);
  check_bucket(bucket);
  const Coding coding = coding_of<Coding>(codec, levels);
  const OnDevice here(signal);
  const DeviceCut on(bounds, bucket, signal, here.stream());
  STD_TORCH_CHECK(is_by_blocks(coding, on), "codec=", codec, ", bucket=", bucket,
                  ": expected a codec of 0 to 2, and buckets of at most ", kMostInBlock, " elements");
  const int64_t num_payloads = check_payloads(bytes, n, {{"scales", scales_WP}}, on.cut.num_buckets, divisor, signal);
  check_numel(out_bytes, n, "out_bytes");
  check_numel(out_scales, on.cut.num_buckets, "out_scales");
  quantise_blocks(on.cut, on.longest(),
                  {coding, data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, n,
                   static_cast<const float*>(scales_WP.const_data_ptr()),
                   static_cast<const uint8_t*>(bytes.const_data_ptr()), num_payloads, divisor, true,
                   out<uint8_t>(out_bytes, "out_bytes", signal), out<float>(out_scales, "out_scales", signal)},
                  here.stream());
}

void average_(Tensor out, Tensor bytes, Tensor scales_WP, std::vector<int64_t> bounds, int64_t bucket, int64_t codec,
              int64_t levels, int64_t divisor, bool added) {
  float* x = sage::out<float>(out, "out", out);
  const int64_t n = out.numel();
  check_bounds(bounds, n);
  check_bucket(bucket);
  const Coding coding = coding_of<Coding>(codec, levels);
  const OnDevice here(out);
  const DeviceCut on(bounds, bucket, out, here.stream());
  const int64_t num_payloads =
      check_payloads(bytes, coding.num_bytes(n), {{"scales", scales_WP}}, on.cut.num_buckets, divisor, out);
  average(on.cut, {coding, x, n, static_cast<const float*>(scales_WP.const_data_ptr()),
                   static_cast<const uint8_t*>(bytes.const_data_ptr()), coding.num_bytes(n), num_payloads, divisor, added},
          here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("quantise_", TORCH_BOX(&sage::cuda::quantise_));
  m.impl("quantise_mean_", TORCH_BOX(&sage::cuda::quantise_mean_));
  m.impl("average_", TORCH_BOX(&sage::cuda::average_));
}
