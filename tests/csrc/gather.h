// Given and random elements against brute force. Include it behind the kernels and drawn.h.
#pragma once

using namespace sage::cpu;

inline void test_take_at(const Team& team, int64_t n) {
  const Floats residual = draw(n), grad = draw(n);
  const bool adds = below(2), keep = below(2), rising = below(3);
  Ints at(n ? below(n + 1) : 0);
  for (int32_t& i : at) i = static_cast<int32_t>(below(n));
  if (rising) {
    std::sort(at.begin(), at.end());
    at.erase(std::unique(at.begin(), at.end()), at.end());
  }
  Floats signal = residual, values(at.size());
  take_at(team, signal.data(), adds ? grad.data() : nullptr, n, at.data(), static_cast<int64_t>(at.size()), keep,
          values.data());
  Floats left = adds ? sum(residual, grad) : residual, expected;
  for (int32_t i : at) expected.push_back(left[i]);
  for (int32_t i : at)
    if (keep) left[i] = 0;
  expect(same(values, expected), "take_at: values");
  expect(same(signal, left), "take_at: signal");
}

inline void test_distinct(Isa isa, int64_t n) {
  const int64_t num = below(2) ? below(n + 1) : n / 100;
  const bool distinct = below(2);
  Ints at(num), plain(num);
  const auto drawn = [&](Isa set, Ints& out) {
    out.resize(draw_group(set, 12345, 3, n, num, distinct, 7, out.data()));
  };
  drawn(isa, at);
  drawn(Isa::scalar, plain);
  expect(at == plain, "distinct: same");
  expect(rises(at.data(), static_cast<int64_t>(at.size())), "distinct: ascending");
  if (distinct) expect(static_cast<int64_t>(at.size()) == num, "distinct: number");
  for (int32_t i : at) expect(i >= 7 && i < 7 + n, "distinct: inside");
}

inline void test_union(int64_t n) {
  Ints at(n ? below(2 * n) : 0), others(n ? below(n) : 0);
  for (Ints* each : {&at, &others})
    for (int32_t& i : *each) i = static_cast<int32_t>(below(n));
  Ints expected = at;
  std::sort(expected.begin(), expected.end());
  expected.erase(std::unique(expected.begin(), expected.end()), expected.end());
  Ints united(at.size()), places(at.size());
  united.resize(unite(at.data(), static_cast<int64_t>(at.size()), n, united.data(), places.data()));
  expect(united == expected, "union: indices");
  for (size_t i = 0; i < at.size(); ++i) expect(united[places[i]] == at[i], "union: places");
  std::vector<uint8_t> is(others.size());
  find_members(bitmap_of(at.data(), static_cast<int64_t>(at.size()), n), others.data(),
               static_cast<int64_t>(others.size()), is.data());
  for (size_t i = 0; i < others.size(); ++i)
    expect(is[i] == std::binary_search(expected.begin(), expected.end(), others[i]), "union: members");
}
