// The CUDA kernels of the quantisation to integers of a table, against the CPU's. Include it behind the kernels of the GPU
// and emulated_groups.h.
#pragma once

#include "../../csrc/cpu/integers.h"

inline void test_integers(int64_t n) {
  std::vector<int64_t> levels{0}, bounds = draw_bounds(n);
  const int64_t most = below(2) ? 16 : 1 + below(255);
  for (int64_t level = 1; level < most; ++level)
    if (below(3)) levels.push_back(level);
  levels.push_back(most);
  const sage::cuda::IntegerTable table(levels);
  const sage::cpu::IntegerTable their_table(levels);
  const int64_t shares = 1 + below(4), length = (n + shares - 1) / shares, ranks = 1 + below(3);
  const auto num_parts = static_cast<int32_t>(bounds.size() - 1);
  const Ints starts_of_parts(bounds.begin(), bounds.end());
  const Floats steps = draw(num_parts);
  const sage::cuda::Parts parts{starts_of_parts.data(), steps.data(), num_parts};
  const auto [starts, firsts] = draw_positions(n);
  const sage::cpu::Positions positions(starts, firsts);
  const OnDevice on({0, n}, 0, starts, firsts);
  const bool packed = below(2), keep = below(2);
  const int64_t num_bytes = (length * (packed ? table.bits : 8) + 7) / 8;
  const uint64_t key = generator();
  Floats ours = draw(n), theirs = ours;
  std::vector<uint8_t> bytes(shares * num_bytes, 0xee), bytes_expected(bytes.size());
  sage::cuda::quantise_integers(
      table, {ours.data(), n, parts, key, on.positions, packed, keep, length, bytes.data(), num_bytes}, shares, nullptr);
  sage::cpu::quantise_integers(sage::cpu::isa(), kAlone,
                               {their_table, theirs.data(), n, bounds.data(), num_parts, steps.data(), key, &positions,
                                packed, keep, length, bytes_expected.data(), num_bytes},
                               shares);
  expect(bytes == bytes_expected, "integers: codes");
  expect(alike(ours, theirs), "integers: error");
  const int64_t row_bytes = (length * table.bits + 7) / 8;
  std::vector<uint8_t> rows(ranks * row_bytes);
  for (uint8_t& byte : rows) byte = static_cast<uint8_t>(below(256));
  const sage::cpu::Planes planes{length, 32 - __builtin_clz(static_cast<uint32_t>(ranks * most))};
  std::vector<uint8_t> sums(planes.num_bytes()), sums_expected(sums.size());
  sage::cuda::sum_integers(table, {rows.data(), row_bytes, ranks, length, planes.bits, sums.data()}, nullptr);
  sage::cpu::sum_integers(sage::cpu::isa(), kAlone,
                          {their_table, rows.data(), row_bytes, ranks, planes, sums_expected.data()});
  expect(sums == sums_expected, "integers: sums");
  std::vector<uint8_t> all(shares * sums.size());
  for (uint8_t& byte : all) byte = static_cast<uint8_t>(below(256));
  sage::cuda::average_integers({ours.data(), n, all.data(), planes.num_bytes(), length, planes.bits, parts, most, ranks},
                               shares, nullptr);
  sage::cpu::average_integers(sage::cpu::isa(), kAlone,
                              {theirs.data(), n, all.data(), planes, bounds.data(), num_parts, steps.data(), most, ranks},
                              shares);
  expect(alike(ours, theirs), "integers: mean");
}
