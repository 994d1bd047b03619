// Torch ops of the quantisation to integers of a table on a GPU.
#include "cut_tensor.h"

#include "../integer_checks.h"

namespace sage::cuda {

namespace {

Parts parts_of(const Tensor& bounds, const Tensor& steps, const Tensor& beside) {
  check_parts(bounds, steps, beside);
  return {static_cast<const int32_t*>(bounds.const_data_ptr()), static_cast<const float*>(steps.const_data_ptr()),
          static_cast<int32_t>(steps.numel())};
}

}  // namespace

Tensor quantise_integers_(Tensor signal, Tensor bounds, Tensor steps, std::vector<int64_t> levels, int64_t key,
                          std::vector<int64_t> starts, std::vector<int64_t> firsts, int64_t shares, bool packed, bool keep) {
  float* to = out<float>(signal, "signal", signal);
  const Parts parts = parts_of(bounds, steps, signal);
  check_table(levels);
  check_positions(starts, firsts, signal.numel());
  check_shares(shares);
  const IntegerTable table(levels);
  const int64_t n = signal.numel(), length = (n + shares - 1) / shares;
  const int64_t num_bytes = (length * (packed ? table.bits : 8) + 7) / 8;
  const OnDevice here(signal);
  const DeviceCut on({0, n}, 0, signal, here.stream(), starts, firsts);
  Tensor bytes = byte_rows(shares, num_bytes, signal);
  quantise_integers(table,
                    {to, n, parts, static_cast<uint64_t>(key), on.positions, packed, keep, length, data<uint8_t>(bytes),
                     num_bytes},
                    shares, here.stream());
  return bytes;
}

Tensor integer_sums(Tensor bytes, std::vector<int64_t> levels, int64_t n) {
  check_table(levels);
  const IntegerTable table(levels);
  const int64_t num = check_numbers_of_levels(bytes, n, table.bits);
  const int bits = bits_of_number(num * table.most);
  const OnDevice here(bytes);
  Tensor sums = empty<uint8_t>(bytes_of_sums(n, bits), bytes);
  sum_integers(table,
               {static_cast<const uint8_t*>(bytes.const_data_ptr()), (n * table.bits + 7) / 8, num, n, bits,
                data<uint8_t>(sums)},
               here.stream());
  return sums;
}

void average_integers_(Tensor out, Tensor bytes, int64_t bits, Tensor bounds, Tensor steps, int64_t most, int64_t num) {
  float* to = sage::out<float>(out, "out", out);
  const Parts parts = parts_of(bounds, steps, out);
  const int64_t length = check_integer_sums(out, bytes, bits, most, num);
  const OnDevice here(out);
  average_integers({to, out.numel(), static_cast<const uint8_t*>(bytes.const_data_ptr()), bytes.size(1), length,
                    static_cast<int>(bits), parts, most, num},
                   bytes.size(0), here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("quantise_integers_", TORCH_BOX(&sage::cuda::quantise_integers_));
  m.impl("sum_integers", TORCH_BOX(&sage::cuda::integer_sums));
  m.impl("average_integers_", TORCH_BOX(&sage::cuda::average_integers_));
}
