// Elias streams on a GPU against the CPU's, and whatever comes in their place. Include it behind the kernels of the GPU and
// emulated_segments.h.
#pragma once

#include "../../csrc/cpu/elias.h"
#include "../../csrc/cuda/elias.h"

template <class T>
bool decode_on_gpu(const std::vector<uint32_t>& words, const Ints& bits, const std::vector<int64_t>& bounds,
                   std::vector<T>& levels) {
  const auto groups = static_cast<int32_t>(bits.size());
  const auto num = static_cast<int64_t>(words.size()), most = num * 32 / sage::cuda::kPartBits + groups;
  const Ints begins(bounds.begin(), bounds.end());
  std::vector<int64_t> word_begins(groups + 1), parts(groups + 1);
  std::vector<uint8_t> exits(most * sage::cuda::kEntries), entries(most);
  std::vector<unsigned long long> sums(most + 1);
  sage::cuda::EliasTotals totals{};
  std::fill(levels.begin(), levels.end(), T{0});
  const sage::cuda::Streams streams{words.data(), num,          bits.data(),  begins.data(),  groups,     most,
                                    word_begins.data(), parts.data(), exits.data(), entries.data(), sums.data()};
  float* floats = nullptr;
  int8_t* bytes = nullptr;
  if constexpr (sizeof(T) == 1)
    bytes = levels.data();
  else
    floats = levels.data();
  sage::cuda::decode_streams(streams, floats, bytes, &totals, nullptr);
  return totals.wrong == 0 && totals.refused == 0;
}

template <class T>
void expect_decoded(const std::vector<uint32_t>& words, const Ints& bits, const std::vector<int64_t>& bounds) {
  std::vector<T> ours(bounds.back()), theirs(bounds.back());
  const bool holds = sage::cpu::decode_streams(sage::cpu::isa(), kAlone, words.data(), static_cast<int64_t>(words.size()),
                                               bits.data(), bounds, theirs.data());
  expect(decode_on_gpu(words, bits, bounds, ours) == holds, "elias: whether words are refused");
  if (holds) expect(ours == theirs, "elias: levels");
}

template <class T>
void test_elias_of(int64_t n, const std::vector<int64_t>& bounds) {
  const int64_t most = std::numeric_limits<T>::max(), range = below(2) ? most : 1 + below(7);
  const int64_t sparse = 1 + below(below(2) ? 3 : below(2) ? 300 : 9000);
  std::vector<T> levels(n);
  for (T& level : levels)
    if (below(sparse) == 0) level = static_cast<T>((1 + below(range)) * (below(2) ? 1 : -1));
  const auto groups = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> lengths(groups);
  const auto& streams = sage::cpu::encode_streams(sage::cpu::isa(), kAlone, levels.data(), bounds, lengths.data());
  Ints bits(lengths.begin(), lengths.end());
  int64_t num = 0;
  for (int64_t each : lengths) num += sage::cpu::words_of(each);
  std::vector<uint32_t> expected(num), words(num);
  sage::cpu::copy_words(kAlone, streams, expected.data());

  const sage::cuda::SegmentTable table(bounds, {}, sage::cuda::kSpan);
  Ints place(table.words.size()), behind(table.num_tiles), found(groups);
  sage::cuda::upload(table.words, place.data(), nullptr);
  std::vector<unsigned long long> before(table.num_tiles), sums(2 * table.num_tiles + 1), group_bits(groups), begins(groups);
  const sage::cuda::Measured measured{behind.data(), before.data(), group_bits.data(), begins.data(), found.data()};
  const sage::cuda::Levels given{levels.data(), sizeof(T) == 1};
  sage::cuda::EliasTotals totals{};
  sage::cuda::measure_streams(table.at(place.data()), given, measured, sums.data(), &totals, nullptr);
  expect(totals.wrong == 0 && totals.words == expected.size(), "elias: number of words");
  expect(found == bits, "elias: bits");
  sage::cuda::encode_streams(table.at(place.data()), given, measured, words.data(), nullptr);
  expect(words == expected, "elias: words");
  if (sizeof(T) == 1) expect_decoded<int8_t>(words, bits, bounds);
  expect_decoded<float>(words, bits, bounds);
  if (num == 0) return;
  for (int turn = 0; turn < 4; ++turn) {  // whatever comes, it is refused where the CPU refuses it
    uint32_t& word = words[below(num)];
    word = turn % 2 ? word ^ 1u << below(32) : static_cast<uint32_t>(generator());
    if (turn == 3) bits[below(groups)] -= static_cast<int32_t>(below(40));
    expect_decoded<int8_t>(words, bits, bounds);
    expect_decoded<float>(words, bits, bounds);
  }
  if (sizeof(T) > 1 && n > 0) {
    levels[below(n)] = std::numeric_limits<T>::min();
    std::fill(sums.begin(), sums.end(), 0);
    sage::cuda::measure_streams(table.at(place.data()), given, measured, sums.data(), &totals, nullptr);
    expect(totals.wrong > 0, "elias: a level without a code");
  }
}

inline void test_elias(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  test_elias_of<int8_t>(n, bounds);
  test_elias_of<int32_t>(n, bounds);
}

// Where the tiles before have no level, which have written so and no more.
inline void test_last_level() {
  for (int turn = 0; turn < 100; ++turn) {
    const int32_t first = static_cast<int32_t>(below(40)), tile = first + 1 + static_cast<int32_t>(below(100));
    const int32_t last = first + static_cast<int32_t>(below(tile - first));
    std::vector<unsigned long long> words(tile + 1, sage::cuda::kUpTo | 3);
    for (int32_t at = first; at < tile; ++at) words[at] = at == last ? sage::cuda::kUpTo | 1234 : at < last ? words[at] : sage::cuda::kOwn;
    const uint32_t own = below(2) ? 99 : 0;
    words[tile] = 0;
    uint32_t found = 0;
    emulate::launch(1, emulate::kWarp, [&] {
      const uint32_t before = sage::cuda::last_before(words.data(), first, tile, own, 7);
      if (threadIdx.x == 0) found = before;
    });
    expect(found == 1234, "elias: last level of the tiles before");
    expect(words[tile] == (sage::cuda::kUpTo | (own ? own : 1234)), "elias: word of the tile");
  }
}
