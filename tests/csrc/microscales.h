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

// Every instruction set against the scalar one, and what is decoded against what was encoded.
inline void test_tensor_scales(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n, const std::vector<int64_t>& bounds) {
  const int64_t num = static_cast<int64_t>(bounds.size()) - 1;
  Floats largest = draw(n);
  for (float& x : largest) x = std::isfinite(x) ? std::fabs(x) : std::fabs(NAN);
  std::vector<uint8_t> bytes(4 * num + n), plain(bytes.size());
  Floats scales(n), expected(n), decoded(n);
  sage::cpu::write_tensor_scales(isa, team, {bounds.data(), num, largest.data(), nullptr, nullptr, scales.data()}, bytes.data());
  sage::cpu::write_tensor_scales(sage::cpu::Isa::scalar, {1, {}},
                                  {bounds.data(), num, largest.data(), nullptr, nullptr, expected.data()}, plain.data());
  expect(bytes == plain, "write_tensor_scales: bytes");
  expect(alike(scales, expected), "write_tensor_scales: scales");
  sage::cpu::read_tensor_scales(isa, team, {bounds.data(), num, nullptr, nullptr, nullptr, decoded.data()}, bytes.data());
  expect(alike(decoded, scales), "read_tensor_scales");
}
