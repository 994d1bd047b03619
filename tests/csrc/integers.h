// Tests of the quantisation to integers of a table, for kernels.cpp: every instruction set against the scalar one, and the
// scalar one against the sums and values that define it.
#pragma once

#include "../../csrc/cpu/integers.h"
#include "drawn.h"

// Integers that ascend from 0 to at most 255.
inline std::vector<int64_t> draw_levels() {
  const int64_t most = below(2) ? 16 : 1 + below(255);
  std::vector<int64_t> levels{0};
  for (int64_t level = 1; level < most; ++level)
    if (below(3)) levels.push_back(level);
  levels.push_back(most);
  return levels;
}

inline void test_integers(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n, const std::vector<int64_t>& bounds) {
  using namespace sage::cpu;
  const IntegerTable table(draw_levels());
  const int64_t shares = 1 + below(4), length = (n + shares - 1) / shares, ranks = 1 + below(3);
  const int64_t num_parts = static_cast<int64_t>(bounds.size()) - 1, num_bytes = packed_bytes(length, table.bits);
  Floats steps = draw(num_parts);
  const auto [starts, firsts] = draw_positions(n);
  const Positions positions(starts, firsts);
  std::vector<uint8_t> rows;  // of the ranks' first shares
  std::vector<int64_t> expected(length);
  for (int64_t w = 0; w < ranks; ++w) {
    const Floats signal = draw(n);
    const bool keep = below(2);
    Floats ours = signal, theirs = signal, same_signal = signal;
    std::vector<uint8_t> codes(shares * num_bytes), codes_expected(codes.size()), integers(shares * length);
    const auto given = [&](Floats& x, bool packed, std::vector<uint8_t>& bytes) {
      return IntegerRows{table,      x.data(), n,    bounds.data(), num_parts,    steps.data(), static_cast<uint64_t>(w),
                         &positions, packed,   keep, length,        bytes.data(), packed ? num_bytes : length};
    };
    quantise_integers(isa, team, given(ours, true, codes), shares);
    quantise_integers(Isa::scalar, {1, {}}, given(theirs, true, codes_expected), shares);
    quantise_integers(isa, team, given(same_signal, false, integers), shares);
    expect(codes == codes_expected, "integers: codes");
    expect(alike(ours, theirs) && alike(ours, same_signal), "integers: error");
    rows.insert(rows.end(), codes.begin(), codes.begin() + num_bytes);
    for (int64_t i = 0; i < length; ++i) expected[i] += integers[i];
  }
  const Planes planes{length, 32 - __builtin_clz(static_cast<uint32_t>(ranks * table.most))};
  std::vector<uint8_t> sums(planes.num_bytes()), all;
  sum_integers(isa, team, {table, rows.data(), num_bytes, ranks, planes, sums.data()});
  for (int64_t share = 0; share < shares; ++share) all.insert(all.end(), sums.begin(), sums.end());
  Floats mean(n);
  average_integers(isa, team, {mean.data(), n, all.data(), planes, bounds.data(), num_parts, steps.data(), table.most, ranks},
                   shares);
  for (int64_t i = 0, part = 0; i < n; ++i) {
    while (bounds[part + 1] <= i) ++part;
    const auto doubled = static_cast<float>(2 * expected[i % length] - ranks * table.most);
    const float value = doubled / static_cast<float>(2 * ranks) * steps[part];
    expect(mean[i] == value || (mean[i] != mean[i] && value != value), "integers: mean");
  }
}
