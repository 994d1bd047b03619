// The CUDA kernels that have groups, or random bits, against the CPU's. Include it behind the kernels of the GPU.
#pragma once

#include "../../csrc/cpu/philox.h"
#include "../../csrc/cpu/signs.h"
#include "../../csrc/cpu/sums.h"
#include "drawn.h"

inline const sage::cpu::Team kAlone{1, {}};

inline void test_random_bits(int64_t n) {
  const uint64_t key = generator();
  const int64_t first = Ints{0, 1, 127, 128, 1 << 30}[below(5)] * (1 + below(9));
  Ints ours(n), theirs(n);
  sage::cuda::random_bits(key, first, n, ours.data(), nullptr);
  sage::cpu::random_bits(sage::cpu::isa(), key, first, n, theirs.data());
  expect(ours == theirs, "random_bits");
}

// Groups of all sizes, some of them empty; more of them than one launch carries to the device, at times.
inline std::vector<int64_t> draw_bounds(int64_t n) {
  std::vector<int64_t> bounds{0, n};
  for (int64_t num = below(12) ? below(9) : 330; num > 0; --num) bounds.push_back(below(n + 1));
  if (below(2)) bounds.push_back(bounds.back());
  std::sort(bounds.begin(), bounds.end());
  return bounds;
}

// A cut whose table has been copied by the kernel.
struct OnDevice {
  sage::cuda::CutTable table;
  Ints words;
  sage::cuda::Cut cut;
  std::vector<sage::cuda::Statistic> pieces;

  OnDevice(const std::vector<int64_t>& bounds, int64_t bucket)
      : table(bounds, bucket), words(table.words.size(), -1), cut(table.at(words.data())), pieces(2 * table.num_pieces) {
    sage::cuda::upload(table.words, words.data(), nullptr);
  }
};

inline void test_statistics(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const size_t num = bounds.size() - 1;
  const int kind = static_cast<int>(below(4));
  const Floats signal = draw(n), grad = draw(n);
  const float* added = below(2) ? grad.data() : nullptr;
  Floats ours = signal, theirs = signal;
  OnDevice on(bounds, 0);
  std::vector<double> rows(4 * num);
  sage::cuda::statistics(static_cast<sage::cuda::Kind>(kind), on.cut, ours.data(), added, on.pieces.data(), rows.data(),
                         nullptr);
  const auto found = sage::cpu::statistics(sage::cpu::isa(), kAlone, static_cast<sage::cpu::Kind>(kind), theirs.data(),
                                           added, bounds);
  expect(same(ours, theirs), "statistics: signal");
  for (size_t g = 0; g < num; ++g) {
    float largest;
    std::memcpy(&largest, &found[g].largest, sizeof largest);
    const double expected[] = {found[g].sum, found[g].other, largest, static_cast<double>(found[g].below)};
    for (int row = 0; row < 4; ++row) {
      const double own = rows[row * num + g];
      expect(own == expected[row] || (own != own && expected[row] != expected[row]), "statistics of a group");
    }
  }
}

// The same bits, or NaN in both: a GPU has one NaN alone.
inline bool alike(const Floats& a, const Floats& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof a[i]) && !(a[i] != a[i] && b[i] != b[i])) return false;
  return a.size() == b.size();
}

inline void test_signs(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const int64_t num = static_cast<int64_t>(bounds.size()) - 1, payloads = below(4), num_bytes = (n + 7) / 8;
  const OnDevice on(bounds, 0);
  const Floats signal = draw(n), low = draw(num), high = draw(num);
  const bool keep = below(2);
  Floats ours = signal, theirs = signal;
  std::vector<uint8_t> bytes(num_bytes), expected(num_bytes);
  sage::cuda::sign_bits(on.cut, ours.data(), n, low.data(), high.data(), keep, bytes.data(), nullptr);
  const sage::cpu::Signs x{theirs.data(), bounds.data(), num, low.data(), high.data(), expected.data()};
  sage::cpu::write_signs(sage::cpu::isa(), kAlone, x, keep, n);
  expect(bytes == expected, "sign_bits: bytes");
  expect(same(ours, theirs), "sign_bits: error");
  const Floats lows = draw(payloads * num), highs = draw(payloads * num);
  std::vector<uint8_t> bits(payloads * num_bytes);
  for (uint8_t& byte : bits) byte = static_cast<uint8_t>(below(256));
  const int64_t divisor = 1 + below(5);
  const bool added = below(2), votes = below(2);
  Floats mean = signal, mean_expected = signal;
  sage::cuda::mean_signs(on.cut, {mean.data(), n, lows.data(), highs.data(), bits.data(), num_bytes, payloads, divisor,
                                  added, votes}, nullptr);
  const sage::cpu::SignMean y{mean_expected.data(), bounds.data(), num, lows.data(), highs.data(), bits.data(),
                              num_bytes, payloads, divisor, added, votes};
  sage::cpu::mean_signs(sage::cpu::isa(), kAlone, y, n);
  expect(alike(mean, mean_expected), "mean_signs");
}
