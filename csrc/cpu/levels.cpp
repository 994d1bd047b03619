// Torch ops of the quantisers on the CPU.
#include "levels.h"

#include "../tensor_checks.h"
#include "team.h"

namespace sage::cpu {

static Coding coding_of(int64_t codec, int64_t levels) {
  STD_TORCH_CHECK(codec >= 0 && codec < kNumCodecs, "codec=", codec, ": expected 0 to ", kNumCodecs - 1);
  STD_TORCH_CHECK(levels >= 1 && levels <= (static_cast<Codec>(codec) == Codec::natural ? 31 : 127), "levels=", levels,
                  ": expected 1 to 127, or to 31 where they are powers of two");
  return Coding(static_cast<Codec>(codec), static_cast<int>(levels));
}

std::tuple<Tensor, Tensor> quantise_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                     int64_t bucket, int64_t codec, int64_t levels, int64_t norm,
                                     std::optional<Tensor> scales, std::optional<Tensor> limits, int64_t key,
                                     int64_t first, bool keep) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  STD_TORCH_CHECK(bucket >= 0, "bucket=", bucket, ": expected 1 element or more, or 0 for whole groups");
  STD_TORCH_CHECK(first >= 0, "first=", first, ": expected 0 or more");
  STD_TORCH_CHECK(norm == 2 || norm == 3, "norm=", norm, ": expected 2 (Euclidean) or 3 (largest magnitude)");
  const Coding coding = coding_of(codec, levels);
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  const int64_t n = signal.numel(), num_buckets = static_cast<int64_t>(buckets.size()) - 1;
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
                       first,
                       keep,
                       data<uint8_t>(bytes)};
  if (scales) {
    STD_TORCH_CHECK(!grad, "scales are given with a gradient to add: expected one of the two");
    check_numel(*scales, num_buckets, "scales");
    quantise(isa(), torch_team(), x, in<float>(*scales, "scales", signal));
    return {bytes, *scales};
  }
  Tensor found = empty<float>(num_buckets, signal);
  quantise_by(isa(), torch_team(), static_cast<Kind>(norm), x, buckets,
              grad ? in<float>(*grad, "grad", signal) : nullptr, data<float>(found));
  return {bytes, found};
}

void average_(Tensor out, Tensor bytes, Tensor scales, std::vector<int64_t> bounds, int64_t bucket, int64_t codec,
              int64_t levels, int64_t divisor, bool added) {
  float* x = sage::out<float>(out, "out", out);
  const int64_t n = out.numel();
  check_bounds(bounds, n);
  STD_TORCH_CHECK(bucket >= 0, "bucket=", bucket, ": expected 1 element or more, or 0 for whole groups");
  STD_TORCH_CHECK(divisor >= 1, "divisor=", divisor, ": expected 1 or more");
  const Coding coding = coding_of(codec, levels);
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  const int64_t num_buckets = static_cast<int64_t>(buckets.size()) - 1;
  const int64_t num_payloads = check_rows(bytes, coding.num_bytes(n), "bytes", out);
  STD_TORCH_CHECK(bytes.scalar_type() == ScalarType::Byte && scales.scalar_type() == ScalarType::Float,
                  "bytes and scales: expected uint8 and float32");
  STD_TORCH_CHECK(check_rows(scales, num_buckets, "scales", out) == num_payloads,
                  "scales and bytes have different numbers of rows: expected one for each payload");
  const Average average_of{coding,       x,           n,       buckets.data(), num_buckets,
                           nullptr,      static_cast<const uint8_t*>(bytes.const_data_ptr()),
                           coding.num_bytes(n), num_payloads, divisor, added};
  average(isa(), torch_team(), average_of, static_cast<const float*>(scales.const_data_ptr()));
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("quantise_", TORCH_BOX(&sage::cpu::quantise_));
  m.impl("average_", TORCH_BOX(&sage::cpu::average_));
}
