// The CUDA kernels of the codes of indices against the CPU's. Include it behind the kernels of the GPU and emulated_indices.h.
#pragma once

#include "../../csrc/cpu/code.h"
#include "../../csrc/cuda/code.h"

// Indices that ascend, with gaps of all lengths in bytes.
inline Ints draw_ascending(int64_t num) {
  const int64_t most = int64_t{1} << (below(3) ? 8 * below(3) + 1 : 26);
  Ints at;
  for (int64_t i = below(2) ? 0 : below(most); static_cast<int64_t>(at.size()) < num && i <= INT32_MAX; i += 1 + below(below(9) ? 3 : most))
    at.push_back(static_cast<int32_t>(i));
  if (!at.empty() && !below(4)) at.back() = INT32_MAX;
  return at;
}

// The bytes of the gaps; none, and false, if the indices are refused. The memory begins `shift` indices behind a multiple of
// 16 bytes.
inline bool encode_gaps_on_gpu(const Ints& at, std::vector<uint8_t>& bytes, int64_t shift) {
  const auto num = static_cast<int64_t>(at.size());
  Ints moved(shift);
  moved.insert(moved.end(), at.begin(), at.end());
  std::vector<unsigned long long> sums(sage::cuda::tiles(num) + 1);
  sage::cuda::GapTotals totals{};
  bytes.resize(sage::cuda::most_gap_bytes(num));
  sage::cuda::encode_gaps(moved.data() + shift, num, bytes.data(), sums.data(), &totals, nullptr);
  bytes.resize(totals.wrong ? 0 : totals.bytes);
  return totals.wrong == 0;
}

// Expects the same indices as on the CPU, or none on both.
inline void test_decode_gaps(const std::vector<uint8_t>& bytes, int64_t num) {
  const auto num_bytes = static_cast<int64_t>(bytes.size());
  if (num < 0 || num > num_bytes) return;
  std::vector<uint8_t> moved(below(2) ? 0 : 1 + below(15));
  const auto shift = static_cast<int64_t>(moved.size());
  moved.insert(moved.end(), bytes.begin(), bytes.end());
  std::vector<unsigned long long> sums(2 * sage::cuda::tiles(num_bytes) + 1);
  sage::cuda::GapTotals totals{};
  Ints found(num), expected(num);
  sage::cuda::decode_gaps(moved.data() + shift, num_bytes, num, found.data(), sums.data(), &totals, nullptr);
  const bool holds = sage::cpu::decode_gaps(bytes.data(), num_bytes, num, expected.data());
  expect((totals.wrong == 0) == holds, "gaps: whether bytes are refused");
  if (holds) expect(found == expected, "gaps: indices");
}

inline void test_gaps(int64_t n) {
  Ints at = draw_ascending(n);
  const auto num = static_cast<int64_t>(at.size());
  std::vector<uint8_t> bytes, expected(sage::cpu::gap_bytes(at.data(), num));
  sage::cpu::encode_gaps(at.data(), num, expected.data());
  expect(encode_gaps_on_gpu(at, bytes, below(4)) && bytes == expected, "gaps: bytes");
  test_decode_gaps(bytes, num);
  test_decode_gaps(bytes, num - 1);
  for (int times = 0; times < 3 && num > 0; ++times) {
    std::vector<uint8_t> wrong = bytes;
    const int64_t place = below(static_cast<int64_t>(wrong.size()));
    if (below(2))
      wrong[place] ^= 0x80;
    else
      wrong.insert(wrong.begin() + place, 1 + below(6), static_cast<uint8_t>(below(3) ? 0x80 : 0xff));
    test_decode_gaps(wrong, num);
    wrong.pop_back();
    test_decode_gaps(wrong, num);
  }
  if (num == 0) return;
  const int64_t place = below(num);
  at[place] = place ? at[place - 1] - static_cast<int32_t>(below(2)) : -1;
  expect(!encode_gaps_on_gpu(at, bytes, below(4)), "gaps: indices that do not ascend");
}

// Indices 0 and c·2²⁸ - 1, of which that of c = 8 is the last that int32 has, and more behind them, in other tiles; gaps that do
// not end; and gaps whose sum is far beyond.
inline void test_last_index() {
  for (const uint8_t end : {0x06, 0x07, 0x08}) {
    std::vector<uint8_t> bytes{0, 0xfe, 0xff, 0xff, 0xff, end};
    test_decode_gaps(bytes, 2);
    bytes.insert(bytes.end(), 5000, 0);
    test_decode_gaps(bytes, 5002);
  }
  test_decode_gaps(std::vector<uint8_t>(9000, 0x80), 0);
  std::vector<uint8_t> large;
  for (int i = 0; i < 1000; ++i) large.insert(large.end(), {0xff, 0xff, 0xff, 0xff, 0x7f});
  test_decode_gaps(large, 1000);
}

inline void test_bitmap(int64_t n) {
  const Ints at = draw_places(n, below(n + 1));
  const int64_t num_bytes = (n + 7) / 8;
  std::vector<uint8_t> expected(num_bytes);
  sage::cpu::encode_bitmap(at.data(), static_cast<int64_t>(at.size()), n, expected.data());
  std::vector<uint32_t> words((num_bytes + 15) / 16 * 4, 12345);
  sage::cuda::zero(words.data(), static_cast<int64_t>(words.size()), nullptr);
  sage::cuda::set_bits({words.data(), n, nullptr, nullptr}, at.data(), static_cast<int64_t>(at.size()), nullptr);
  expect(num_bytes == 0 || !std::memcmp(words.data(), expected.data(), num_bytes), "bitmap: bytes");
  words.resize(sage::cuda::bitmap_words(8 * num_bytes));
  Ints counts(sage::cuda::bit_tiles(8 * num_bytes) + 1);
  const sage::cuda::Bitmap bits{words.data(), 8 * num_bytes, nullptr, counts.data()};
  sage::cuda::count_bits(bits, nullptr);
  Ints found(counts.back()), indices(sage::cpu::count_bits(expected.data(), num_bytes));
  sage::cuda::list_bits(bits, found.data(), nullptr);
  sage::cpu::decode_bitmap(expected.data(), num_bytes, indices.data());
  expect(found == indices, "bitmap: indices");
}
