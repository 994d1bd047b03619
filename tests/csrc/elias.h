// Elias streams against their definition, digit by digit, and whatever comes in their place. Included by kernels.cpp,
// behind the kernels and drawn.h.
#pragma once

inline std::string digits(uint64_t x) {
  int64_t size = 0;
  while (size < 64 && x >> size) ++size;
  std::string bits(size, '0');
  for (char& bit : bits) bit = x >> --size & 1 ? '1' : '0';
  return bits;
}

inline std::string elias_digits(uint64_t x) {
  const std::string all = digits(x), length = digits(all.size());
  return std::string(length.size() - 1, '0') + length + all.substr(1);
}

// The stream of a group.
template <class T>
std::string elias_stream(const std::vector<T>& levels, int64_t begin, int64_t end) {
  std::string bits;
  int64_t before = begin - 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t level = levels[i];
    if (level == 0) continue;
    bits += elias_digits(i - before) + (level < 0 ? "1" : "0") + elias_digits(std::abs(level));
    before = i;
  }
  return bits;
}

template <class T, class Out>
void test_elias_of(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n, const std::vector<int64_t>& bounds) {
  using namespace sage::cpu;
  const int64_t most = std::numeric_limits<T>::max(), range = below(2) ? most : 1 + below(7);
  const int64_t sparse = 1 + below(below(2) ? 3 : 300);
  std::vector<T> levels(n);
  for (T& level : levels)
    if (below(sparse) == 0) level = static_cast<T>((1 + below(range)) * (below(2) ? 1 : -1));
  const auto groups = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> bits(groups);
  const std::vector<Stream>& streams = encode_streams(isa, team, levels.data(), bounds, bits.data());
  std::vector<int32_t> lengths(bits.begin(), bits.end());
  std::string expected;
  int64_t num = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const std::string stream = elias_stream(levels, bounds[g], bounds[g + 1]);
    expect(bits[g] == static_cast<int64_t>(stream.size()), "elias: bits");
    num += words_of(bits[g]);
    expected += stream + std::string(32 * num - expected.size() - stream.size(), '0');
  }
  std::vector<uint32_t> words(num);
  copy_words(team, streams, words.data());
  for (int64_t i = 0; i < 32 * num; ++i)
    expect((words[i / 32] >> (31 - i % 32) & 1) == (expected[i] == '1'), "elias: words");
  std::vector<Out> back(n, Out{1});
  expect(decode_streams(isa, team, words.data(), num, lengths.data(), bounds, back.data()), "elias: decode");
  for (int64_t i = 0; i < n; ++i) expect(back[i] == static_cast<Out>(levels[i]), "elias: levels");
  if (num == 0) return;
  for (int turn = 0; turn < 4; ++turn) {  // whatever comes, it stays inside, and all instruction sets agree
    uint32_t& word = words[below(num)];
    word = turn % 2 ? word ^ 1u << below(32) : static_cast<uint32_t>(generator());
    if (turn == 3) lengths[below(groups)] -= static_cast<int32_t>(below(40));
    std::vector<Out> plain(n, Out{1});
    const bool holds = decode_streams(isa, team, words.data(), num, lengths.data(), bounds, back.data());
    expect(decode_streams(Isa::scalar, team, words.data(), num, lengths.data(), bounds, plain.data()) == holds,
           "elias: refused");
    if (holds) expect(back == plain, "elias: damaged");
  }
}

inline void test_elias(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n) {
  std::vector<int64_t> bounds{0, n};
  for (int64_t i = below(6); i > 0; --i) bounds.push_back(below(n + 1));
  std::sort(bounds.begin(), bounds.end());
  test_elias_of<int8_t, int8_t>(isa, team, n, bounds);
  test_elias_of<int8_t, float>(isa, team, n, bounds);
  test_elias_of<int32_t, float>(isa, team, n, bounds);
}
