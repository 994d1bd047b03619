// The CUDA kernels that have groups, or random bits, against the CPU's. Include it behind the kernels of the GPU.
#pragma once

#include "../../csrc/cpu/levels.h"
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
  sage::cuda::Positions positions;
  std::vector<sage::cuda::Statistic> pieces;

  OnDevice(const std::vector<int64_t>& bounds, int64_t bucket, const std::vector<int64_t>& starts = {},
           const std::vector<int64_t>& firsts = {})
      : table(bounds, bucket, starts, firsts),
        words(table.words.size(), -1),
        cut(table.at(words.data())),
        positions(table.positions_at(words.data())),
        pieces(2 * table.num_pieces) {
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

inline void test_levels(int64_t n, int codec) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const int64_t bucket = Ints{0, 1 + static_cast<int32_t>(below(100)), 512, 1024, 1500, 9000}[below(6)];
  const std::vector<int64_t> buckets = sage::cpu::bucket_bounds(bounds, bucket);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1, payloads = below(4), divisor = 1 + below(5);
  const auto [starts, firsts] = draw_positions(n);
  OnDevice on(bounds, bucket, starts, firsts);
  const sage::cpu::Positions positions(starts, firsts);
  expect(on.cut.num_buckets == num, "levels: buckets");
  const int levels = 1 + static_cast<int>(below(codec == 4 ? 31 : 127));
  const bool euclidean = below(2), keep = below(2), clips = below(2), added = below(2), given = below(2);
  const Floats signal = draw(n), grad = draw(n), limits = draw(num);
  const sage::cpu::Coding theirs(static_cast<sage::cpu::Codec>(codec), levels);
  const sage::cuda::Coding ours(static_cast<sage::cuda::Codec>(codec), levels);
  const int64_t num_bytes = theirs.num_bytes(n);
  expect(ours.num_bytes(n) == num_bytes, "levels: number of bytes");
  const float* limit = clips ? limits.data() : nullptr;
  const uint64_t key = generator();
  Floats left = signal, left_expected = signal, scales = draw(num), scales_expected = scales;
  std::vector<uint8_t> bytes(num_bytes), bytes_expected(num_bytes);
  if (!given)
    sage::cuda::scales(euclidean, on.cut, left.data(), grad.data(), on.pieces.data(), scales.data(), nullptr);
  sage::cuda::quantise(on.cut, {ours, left.data(), n, scales.data(), limit, key, on.positions, keep, bytes.data()},
                       nullptr);
  const sage::cpu::Quantisation x{theirs,  left_expected.data(), n,     buckets.data(), num,  nullptr, nullptr,
                                  nullptr, limit,                key,   &positions,     keep, bytes_expected.data()};
  if (given)
    sage::cpu::quantise(sage::cpu::isa(), kAlone, x, scales.data());
  else
    sage::cpu::quantise_by(sage::cpu::isa(), kAlone, euclidean ? sage::cpu::Kind::squares : sage::cpu::Kind::largest, x,
                           buckets, grad.data(), scales_expected.data());
  const std::string name = "codec " + std::to_string(codec);
  expect(alike(scales, scales_expected), name + ": scales");
  expect(bytes == bytes_expected, name + ": codes");
  expect(alike(left, left_expected), name + ": error");
  std::vector<uint8_t> rows(payloads * num_bytes);
  for (uint8_t& byte : rows) byte = static_cast<uint8_t>(below(256));
  const Floats each = draw(payloads * num);
  Floats mean = signal, mean_expected = signal;
  sage::cuda::average(on.cut, {ours, mean.data(), n, each.data(), rows.data(), num_bytes, payloads, divisor, added},
                      nullptr);
  const sage::cpu::Average y{theirs,  mean_expected.data(), n,        buckets.data(), num,  nullptr,
                             rows.data(), num_bytes,        payloads, divisor,        added};
  sage::cpu::average(sage::cpu::isa(), kAlone, y, each.data());
  expect(alike(mean, mean_expected), name + ": mean");
}
