// Tests of the largest magnitudes of blocks, for kernels.cpp.
#pragma once

#include "../../csrc/cpu/microscales.h"
#include "drawn.h"

inline void test_largest_of_blocks(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n,
                                   const std::vector<int64_t>& bounds) {
  const int64_t block = Ints{16, 32, 48, 1 + static_cast<int32_t>(below(100))}[below(4)];
  const std::vector<int64_t> firsts = sage::cpu::first_blocks(bounds, block);
  const Floats grad = draw(n), before = draw(n);
  const bool adds = below(2);
  const Floats after = adds ? sum(before, grad) : before;
  Floats signal = before, found(firsts.back()), expected;
  sage::cpu::largest_of_blocks(isa, team,
                               {signal.data(), adds ? grad.data() : nullptr, bounds.data(), firsts.data(),
                                static_cast<int64_t>(bounds.size()) - 1, block, found.data()});
  for (size_t g = 0; g + 1 < bounds.size(); ++g)
    for (int64_t begin = bounds[g]; begin < bounds[g + 1]; begin += block) {
      float most = 0;
      for (int64_t i = begin; i < std::min(begin + block, bounds[g + 1]); ++i)
        most = std::isfinite(after[i]) ? std::max(most, std::fabs(after[i])) : NAN + most;
      expected.push_back(most);
    }
  expect(alike(found, expected), "largest_of_blocks");
  expect(alike(signal, after), "largest_of_blocks: signal");
}
