// The CUDA kernels of given and random elements, and of unions of indices, against the CPU's. Include it behind the kernels of
// the GPU and emulated_groups.h.
#pragma once

#include "../../csrc/cpu/distinct.h"
#include "../../csrc/cpu/gather.h"
#include "../../csrc/cpu/union.h"

// Indices below n, some of them twice, in any order or ascending.
inline Ints draw_places(int64_t n, int64_t num) {
  Ints at(n ? num : 0);
  for (int32_t& i : at) i = static_cast<int32_t>(below(n));
  if (below(2)) std::sort(at.begin(), at.end());
  return at;
}

inline void test_take_at(int64_t n) {
  const Ints at = draw_places(n, below(n + 1));
  const int64_t num = static_cast<int64_t>(at.size());
  const Floats signal = draw(n), grad = draw(n);
  const float* added = below(2) ? grad.data() : nullptr;
  const bool keep = below(2);
  Floats ours = signal, theirs = signal, values(num), expected(num);
  sage::cuda::take_at(ours.data(), added, n, at.data(), num, keep, values.data(), nullptr);
  sage::cpu::take_at(kAlone, theirs.data(), added, n, at.data(), num, keep, expected.data());
  expect(same(values, expected), "take_at: values");
  expect(same(ours, theirs), "take_at: signal");
  const Ints outside{-1, static_cast<int32_t>(n)};
  Floats missing(2);
  sage::cuda::take_at(ours.data(), nullptr, n, outside.data(), 2, true, missing.data(), nullptr);
  expect(std::isnan(missing[0]) && std::isnan(missing[1]) && same(ours, theirs), "take_at: outside");
}

struct HostBitmap {
  std::vector<uint32_t> memory;
  Ints before, counts;
  sage::cuda::Bitmap bits;

  // The memory begins at a multiple of 16 bytes, as a tensor's does.
  HostBitmap(int64_t n, int64_t further)
      : memory((sage::cuda::bitmap_words(n) + further + 3) / 4 * 4, 12345),
        before(sage::cuda::bitmap_words(n)),
        counts(sage::cuda::bit_tiles(n) + 1),
        bits{memory.data(), n, before.data(), counts.data()} {
    sage::cuda::zero(bits.words, static_cast<int64_t>(memory.size()), nullptr);
  }

  Ints listed() {
    sage::cuda::count_bits(bits, nullptr);
    Ints indices(counts.back());
    sage::cuda::list_bits(bits, indices.data(), nullptr);
    return indices;
  }
};

inline void test_union(int64_t n) {
  const Ints at = draw_places(n, below(2 * n + 1)), others = draw_places(n, below(n + 1));
  const int64_t num = static_cast<int64_t>(at.size()), num_others = static_cast<int64_t>(others.size());
  HostBitmap on(n, 0);
  sage::cuda::set_bits(on.bits, at.data(), num, nullptr);
  const Ints united = on.listed();
  Ints places(num), places_expected(num), expected(num);
  sage::cuda::find_places(on.bits, at.data(), num, places.data(), nullptr);
  expected.resize(sage::cpu::unite(at.data(), num, n, expected.data(), places_expected.data()));
  expect(united == expected, "unite: indices");
  expect(places == places_expected, "unite: places");
  std::vector<uint8_t> is(num_others), is_expected(num_others);
  sage::cuda::find_members(on.bits, others.data(), num_others, is.data(), nullptr);
  sage::cpu::find_members(sage::cpu::bitmap_of(at.data(), num, n), others.data(), num_others, is_expected.data());
  expect(is == is_expected, "is_among");
}

// The elements drawn, on the GPU.
inline Ints drawn(const std::vector<int64_t>& bounds, const std::vector<int64_t>& counts,
                  const std::vector<int64_t>& numbers, bool distinct, uint64_t key, int64_t rest) {
  const sage::cuda::DrawTable table(bounds, counts, numbers, distinct, rest);
  HostBitmap on(table.n, int64_t{table.num_rounds} * table.num_groups);
  Ints words(table.words.size());
  sage::cuda::upload(table.words, words.data(), nullptr);
  int32_t* found = reinterpret_cast<int32_t*>(on.bits.words + sage::cuda::bitmap_words(table.n));
  sage::cuda::draw(table.at(words.data(), key, distinct, on.bits.words, found), table, nullptr);
  return on.listed();
}

inline void test_draw(int64_t n) {
  std::vector<int64_t> bounds = draw_bounds(n), counts, numbers;
  for (size_t g = 0; g + 1 < bounds.size(); ++g) {
    const int64_t size = bounds[g + 1] - bounds[g];
    numbers.push_back(below(2) ? static_cast<int64_t>(g) : below(int64_t{1} << 31));
    counts.push_back(std::vector<int64_t>{0, size, size / 100, below(size + 1), below(size + 1)}[below(5)]);
  }
  const bool distinct = below(2);
  const uint64_t key = generator() >> 1;
  const int64_t rest = std::vector<int64_t>{0, 10, 1000, 4096}[below(4)];
  Ints expected(n);
  int64_t size = 0;
  for (size_t g = 0; g < counts.size(); ++g)
    size += sage::cpu::draw_group(sage::cpu::isa(), key, numbers[g], bounds[g + 1] - bounds[g], counts[g],
                                  distinct, bounds[g], expected.data() + size);
  expected.resize(size);
  expect(drawn(bounds, counts, numbers, distinct, key, rest) == expected, "draw_indices");
}

inline void test_draw_launches() {
  const auto launches = [](int64_t num_groups) {
    std::vector<int64_t> bounds{0}, counts, numbers;
    for (int64_t g = 0; g < num_groups; ++g) {
      bounds.push_back(bounds.back() + 500);
      counts.push_back(g % 2 ? 50 : 450);
      numbers.push_back(g);
    }
    const int64_t before = emulate::launches;
    drawn(bounds, counts, numbers, true, 7, 10);
    return emulate::launches - before;
  };
  expect(launches(2) == launches(200), "draw_indices: launches");
}
