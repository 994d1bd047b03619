// Torch ops of the quantisers on the CPU.
#include "levels.h"

#include "../tensor_checks.h"
#include "scaled.h"
#include "team.h"

namespace sage::cpu {

std::tuple<Tensor, Tensor> quantise_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                     int64_t bucket, int64_t codec, int64_t levels, int64_t norm,
                                     std::optional<Tensor> scales, std::optional<Tensor> limits, int64_t key,
                                     std::vector<int64_t> starts, std::vector<int64_t> firsts, bool keep) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_quantisation(bucket, norm, scales.has_value() && grad.has_value());
  check_positions(starts, firsts, signal.numel());
  const Positions positions(std::move(starts), std::move(firsts));
  const Coding coding = coding_of<Coding>(codec, levels);
  const int64_t n = signal.numel();
  if (scales && !limits && is_by_scaled_blocks(coding, bucket)) {
    const std::vector<int64_t> firsts = first_blocks(bounds, bucket);
    check_numel(*scales, firsts.back(), "scales");
    Tensor bytes = empty<uint8_t>(coding.num_bytes(n), signal);
    quantise_scaled(isa(), torch_team(),
                    {coding, data<float>(signal), n, bounds.data(), firsts.data(), static_cast<int64_t>(bounds.size()) - 1,
                     bucket, in<float>(*scales, "scales", signal), keep, data<uint8_t>(bytes)});
    return {bytes, *scales};
  }
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  const int64_t num_buckets = static_cast<int64_t>(buckets.size()) - 1;
  if (limits) check_numel(*limits, num_buckets, "limits");
  Tensor bytes = empty<uint8_t>(coding.num_bytes(n), signal);
  const Quantisation x{coding,
                       data<float>(signal),
                       n,
                       buckets.data(),
                       num_buckets,
                       nullptr,
                       nullptr,
                       nullptr,
                       limits ? in<float>(*limits, "limits", signal) : nullptr,
                       static_cast<uint64_t>(key),
                       &positions,
                       keep,
                       data<uint8_t>(bytes)};
  if (scales) {
    check_numel(*scales, num_buckets, "scales");
    quantise(isa(), torch_team(), x, in<float>(*scales, "scales", signal));
    return {bytes, *scales};
  }
  Tensor found = empty<float>(num_buckets, signal);
  if (!limits && is_by_blocks(coding, static_cast<Kind>(norm), buckets) && (keep || !grad)) {
    const Blocks blocks{coding,  data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr,
                        n,       buckets.data(),      num_buckets,
                        nullptr, nullptr,             0,
                        1,       keep,                data<uint8_t>(bytes),
                        data<float>(found)};
    quantise_blocks(isa(), torch_team(), blocks, nullptr);
    return {bytes, found};
  }
  quantise_by(isa(), torch_team(), static_cast<Kind>(norm), x, buckets,
              grad ? in<float>(*grad, "grad", signal) : nullptr, data<float>(found));
  return {bytes, found};
}

void quantise_mean_(Tensor signal, std::optional<Tensor> grad, Tensor bytes, Tensor scales, std::vector<int64_t> bounds,
                    int64_t bucket, int64_t codec, int64_t levels, int64_t divisor, Tensor out_bytes,
                    Tensor out_scales) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  check_bucket(bucket);
  const Coding coding = coding_of<Coding>(codec, levels);
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  STD_TORCH_CHECK(is_by_blocks(coding, Kind::largest, buckets), "codec=", codec, ", bucket=", bucket,
                  ": expected a codec of 0 to 2, and buckets of at most ", kResident, " elements");
  const int64_t n = signal.numel(), num_buckets = static_cast<int64_t>(buckets.size()) - 1;
  const int64_t num_payloads = check_payloads(bytes, n, {{"scales", scales}}, num_buckets, divisor, signal);
  check_numel(out_bytes, n, "out_bytes");
  check_numel(out_scales, num_buckets, "out_scales");
  const Blocks blocks{coding,
                      data<float>(signal),
                      grad ? in<float>(*grad, "grad", signal) : nullptr,
                      n,
                      buckets.data(),
                      num_buckets,
                      static_cast<const uint8_t*>(bytes.const_data_ptr()),
                      nullptr,
                      num_payloads,
                      divisor,
                      true,
                      out<uint8_t>(out_bytes, "out_bytes", signal),
                      out<float>(out_scales, "out_scales", signal)};
  quantise_blocks(isa(), torch_team(), blocks, static_cast<const float*>(scales.const_data_ptr()));
}

void average_(Tensor out, Tensor bytes, Tensor scales, std::vector<int64_t> bounds, int64_t bucket, int64_t codec,
              int64_t levels, int64_t divisor, bool added) {
  float* x = sage::out<float>(out, "out", out);
  const int64_t n = out.numel();
  check_bounds(bounds, n);
  check_bucket(bucket);
  const Coding coding = coding_of<Coding>(codec, levels);
  if (bytes.dim() == 2 && bytes.size(0) == 1 && is_by_scaled_blocks(coding, bucket) && is_of_whole_bytes(coding, bounds)) {
    const std::vector<int64_t> firsts = first_blocks(bounds, bucket);
    check_payloads(bytes, coding.num_bytes(n), {{"scales", scales}}, firsts.back(), divisor, out);
    return average_scaled(isa(), torch_team(),
                          {coding, x, n, bounds.data(), firsts.data(), static_cast<int64_t>(bounds.size()) - 1, bucket,
                           static_cast<const float*>(scales.const_data_ptr()),
                           static_cast<const uint8_t*>(bytes.const_data_ptr()), divisor, added});
  }
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  const int64_t num_buckets = static_cast<int64_t>(buckets.size()) - 1;
  const int64_t num_payloads = check_payloads(bytes, coding.num_bytes(n), {{"scales", scales}}, num_buckets, divisor, out);
  const Average average_of{coding,       x,           n,       buckets.data(), num_buckets,
                           nullptr,      static_cast<const uint8_t*>(bytes.const_data_ptr()),
                           coding.num_bytes(n), num_payloads, divisor, added};
  average(isa(), torch_team(), average_of, static_cast<const float*>(scales.const_data_ptr()));
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("quantise_", TORCH_BOX(&sage::cpu::quantise_));
  m.impl("quantise_mean_", TORCH_BOX(&sage::cpu::quantise_mean_));
  m.impl("average_", TORCH_BOX(&sage::cpu::average_));
}
