// Torch ops of the sign methods, and of statistics of groups, on the CPU.
#include "signs.h"

#include "../tensor_checks.h"
#include "sums.h"
#include "team.h"
#include "words.h"

namespace sage::cpu {

// Returns the statistics of each group, as four rows: sum, other, largest, below.
Tensor statistics_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, int64_t kind) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  STD_TORCH_CHECK(kind >= 0 && kind <= 3, "kind=", kind, ": expected 0 to 3");
  const auto found = statistics(isa(), torch_team(), static_cast<Kind>(kind), data<float>(signal),
                                grad ? in<float>(*grad, "grad", signal) : nullptr, bounds);
  const int64_t num_groups = static_cast<int64_t>(found.size()), sizes[2] = {4, num_groups}, strides[2] = {num_groups, 1};
  Tensor rows = empty(2, sizes, strides, ScalarType::Double, signal);
  double* row = static_cast<double*>(rows.mutable_data_ptr());
  for (int64_t g = 0; g < num_groups; ++g) {
    float largest;
    std::memcpy(&largest, &found[g].largest, sizeof largest);
    row[g] = found[g].sum;
    row[num_groups + g] = found[g].other;
    row[2 * num_groups + g] = largest;
    row[3 * num_groups + g] = static_cast<double>(found[g].below);
  }
  return rows;
}

Tensor sign_bits_(Tensor signal, std::vector<int64_t> bounds, Tensor low, Tensor high, bool keep) {
  float* x = data<float>(signal);
  check_signal(signal, {});
  check_bounds(bounds, signal.numel());
  const int64_t num_groups = static_cast<int64_t>(bounds.size()) - 1;
  check_numel(low, num_groups, "low");
  check_numel(high, num_groups, "high");
  Tensor bytes = empty<uint8_t>((signal.numel() + 7) / 8, signal);
  const Signs signs{x, bounds.data(), num_groups, in<float>(low, "low", signal), in<float>(high, "high", signal),
                    data<uint8_t>(bytes)};
  write_signs(isa(), torch_team(), signs, keep, signal.numel());
  return bytes;
}

std::tuple<Tensor, Tensor> momentum_signs_(Tensor momentum, Tensor signal, double beta) {
  const int64_t n = signal.numel();
  float* m = sage::out<float>(momentum, "momentum", signal);
  const float* x = in<float>(signal, "signal", signal);
  check_numel(momentum, n, "momentum");
  STD_TORCH_CHECK(n == 0 || m != x, "momentum and signal are one vector: expected two");
  Tensor bytes = empty<uint8_t>((n + 7) / 8, signal), largest = empty<float>(1, signal);
  const MomentumSigns signs{m, x, static_cast<float>(beta), static_cast<float>(1 - beta), data<uint8_t>(bytes)};
  const uint32_t most = momentum_signs(isa(), torch_team(), signs, n);
  std::memcpy(data<float>(largest), &most, sizeof most);
  return {bytes, largest};
}

void mean_signs_(Tensor out, Tensor bytes, Tensor low, Tensor high, std::vector<int64_t> bounds, int64_t divisor,
                 bool added, bool votes) {
  const int64_t n = out.numel(), num_groups = static_cast<int64_t>(bounds.size()) - 1, num_bytes = (n + 7) / 8;
  float* x = sage::out<float>(out, "out", out);
  check_bounds(bounds, n);
  const int64_t num_payloads =
      check_payloads(bytes, num_bytes, {{"low", low}, {"high", high}}, num_groups, divisor, out);
  const SignMean mean{x, bounds.data(), num_groups, static_cast<const float*>(low.const_data_ptr()),
                      static_cast<const float*>(high.const_data_ptr()),
                      static_cast<const uint8_t*>(bytes.const_data_ptr()), num_bytes, num_payloads, divisor, added,
                      votes};
  mean_signs(isa(), torch_team(), mean, n);
}

Tensor sign_words(Tensor bytes, std::vector<int64_t> bounds, bool by_column) {
  const int64_t n = bounds.empty() ? 0 : bounds.back();
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  check_bounds(bounds, n);
  check_packed(bytes.numel(), n, 1);
  int64_t num = 0;
  if (by_column) {
    num = num_words(n);
  } else {
    for (size_t g = 0; g + 1 < bounds.size(); ++g) num += num_words(bounds[g + 1] - bounds[g]);
  }
  Tensor words = empty<int32_t>(num, bytes);
  uint32_t* word = reinterpret_cast<uint32_t*>(data<int32_t>(words));
  if (by_column)
    words_by_column(byte, n, word);
  else
    words_by_group(byte, bounds, word);
  return words;
}

Tensor sign_bytes(Tensor words, std::vector<int64_t> bounds, bool by_column) {
  const int64_t n = bounds.empty() ? 0 : bounds.back(), num_bytes = (n + 7) / 8;
  check_bounds(bounds, n);
  int64_t num = num_words(n);
  if (!by_column) {
    num = 0;
    for (size_t g = 0; g + 1 < bounds.size(); ++g) num += num_words(bounds[g + 1] - bounds[g]);
  }
  const int64_t num_rows = check_rows(words, num, "words", words);
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int, "words has another dtype: expected int32");
  const int64_t sizes[2] = {num_rows, num_bytes}, strides[2] = {num_bytes, 1};
  Tensor bytes = empty(2, sizes, strides, ScalarType::Byte, words);
  const uint32_t* word = static_cast<const uint32_t*>(words.const_data_ptr());
  uint8_t* byte = static_cast<uint8_t*>(bytes.mutable_data_ptr());
  for (int64_t row = 0; row < num_rows; ++row) {
    if (by_column) {
      std::fill_n(byte + row * num_bytes, num_bytes, uint8_t{0});
      bits_by_column(word + row * num, n, byte + row * num_bytes);
    } else {
      bits_by_group(word + row * num, bounds, byte + row * num_bytes);
    }
  }
  return bytes;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("statistics_", TORCH_BOX(&sage::cpu::statistics_));
  m.impl("sign_bits_", TORCH_BOX(&sage::cpu::sign_bits_));
  m.impl("momentum_signs_", TORCH_BOX(&sage::cpu::momentum_signs_));
  m.impl("mean_signs_", TORCH_BOX(&sage::cpu::mean_signs_));
  m.impl("sign_words", TORCH_BOX(&sage::cpu::sign_words));
  m.impl("sign_bytes", TORCH_BOX(&sage::cpu::sign_bytes));
}
