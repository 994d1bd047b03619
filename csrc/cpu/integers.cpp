// Torch ops of the quantisation to integers of a table on the CPU.
#include "integers.h"

#include "../integer_checks.h"
#include "team.h"

namespace sage::cpu {

namespace {

// The bounds of the parts, once it is checked that they ascend from 0 to n.
std::vector<int64_t> checked_parts(const Tensor& bounds, const Tensor& steps, const Tensor& beside) {
  check_parts(bounds, steps, beside);
  const auto* from = static_cast<const int32_t*>(bounds.const_data_ptr());
  std::vector<int64_t> found(from, from + bounds.numel());
  check_bounds(found, beside.numel());
  return found;
}

}  // namespace

Tensor quantise_integers_(Tensor signal, Tensor bounds, Tensor steps, std::vector<int64_t> levels, int64_t key,
                          std::vector<int64_t> starts, std::vector<int64_t> firsts, int64_t shares, bool packed, bool keep) {
  float* to = out<float>(signal, "signal", signal);
  const std::vector<int64_t> parts = checked_parts(bounds, steps, signal);
  check_table(levels);
  check_positions(starts, firsts, signal.numel());
  check_shares(shares);
  const Positions positions(std::move(starts), std::move(firsts));
  const IntegerTable table(levels);
  const int64_t n = signal.numel(), length = (n + shares - 1) / shares;
  const int64_t num_bytes = packed_bytes(length, packed ? table.bits : 8);
  Tensor bytes = byte_rows(shares, num_bytes, signal);
  const IntegerRows rows{table,
                         to,
                         n,
                         parts.data(),
                         static_cast<int64_t>(parts.size()) - 1,
                         static_cast<const float*>(steps.const_data_ptr()),
                         static_cast<uint64_t>(key),
                         &positions,
                         packed,
                         keep,
                         length,
                         data<uint8_t>(bytes),
                         num_bytes};
  quantise_integers(isa(), torch_team(), rows, shares);
  return bytes;
}

Tensor integer_sums(Tensor bytes, std::vector<int64_t> levels, int64_t n) {
  check_table(levels);
  const IntegerTable table(levels);
  const int64_t num = check_numbers_of_levels(bytes, n, table.bits);
  const Planes planes{n, bits_of_number(num * table.most)};
  Tensor sums = empty<uint8_t>(planes.num_bytes(), bytes);
  sum_integers(isa(), torch_team(),
               {table, static_cast<const uint8_t*>(bytes.const_data_ptr()), packed_bytes(n, table.bits), num, planes, data<uint8_t>(sums)});
  return sums;
}

void average_integers_(Tensor out, Tensor bytes, int64_t bits, Tensor bounds, Tensor steps, int64_t most, int64_t num) {
  float* to = sage::out<float>(out, "out", out);
  const std::vector<int64_t> parts = checked_parts(bounds, steps, out);
  const int64_t length = check_integer_sums(out, bytes, bits, most, num);
  average_integers(isa(), torch_team(),
                   {to, out.numel(), static_cast<const uint8_t*>(bytes.const_data_ptr()), {length, static_cast<int>(bits)}, parts.data(),
                    static_cast<int64_t>(parts.size()) - 1, static_cast<const float*>(steps.const_data_ptr()), most, num},
                   bytes.size(0));
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("quantise_integers_", TORCH_BOX(&sage::cpu::quantise_integers_));
  m.impl("sum_integers", TORCH_BOX(&sage::cpu::integer_sums));
  m.impl("average_integers_", TORCH_BOX(&sage::cpu::average_integers_));
}
