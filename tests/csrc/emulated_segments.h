// The CUDA kernels that cut groups into tiles of their own, against brute force and the CPU's. Include it behind the kernels
// of the GPU and emulated_groups.h.
#pragma once

#include "../../csrc/cpu/select.h"
#include "../../csrc/cuda/segments.h"

// Segments whose table has been copied by the kernel, and memory that holds whatever was there before.
struct OnTiles {
  sage::cuda::SegmentTable table;
  Ints words;
  sage::cuda::Segments cut;
  std::vector<sage::cuda::Search> searches;
  std::vector<unsigned long long> sums;

  OnTiles(const std::vector<int64_t>& bounds, const std::vector<int64_t>& wanted, int64_t num_searches)
      : table(bounds, wanted), words(table.words.size(), -1), cut(table.at(words.data())), searches(num_searches),
        sums(table.num_tiles + 3, 12345) {
    sage::cuda::upload(table.words, words.data(), nullptr);
    if (num_searches > 0) std::memset(searches.data(), 77, searches.size() * sizeof searches[0]);
  }
};

inline void test_top(int64_t n, const std::vector<int64_t>& bounds) {
  const Floats signal = draw(n), grad = draw(n);
  const bool keep = below(4), clear = below(2), adds = below(4);
  const Floats a = adds ? sum(signal, grad) : signal;
  std::vector<int64_t> before{0};
  Floats left = a, values;
  Ints indices;
  for (size_t g = 0; g + 1 < bounds.size(); ++g) {
    const int64_t begin = bounds[g], size = bounds[g + 1] - begin;
    const int64_t choices[] = {0, size, size / 100, size / 10, below(size + 1)}, k = choices[below(5)];
    before.push_back(before.back() + k);
    for (int32_t at : at_largest(Floats(a.begin() + begin, a.begin() + bounds[g + 1]), k, sage::cuda::magnitude)) {
      indices.push_back(static_cast<int32_t>(begin) + at);
      values.push_back(a[begin + at]);
      if (keep) left[begin + at] = 0;
    }
  }
  OnTiles on(bounds, before, static_cast<int64_t>(bounds.size()) - 1);
  Floats ours = signal, cleared = grad, found(values.size());
  Ints at(values.size());
  const sage::cuda::Pass pass{ours.data(), adds ? cleared.data() : nullptr, n, keep, clear, nullptr, 1};
  sage::cuda::top(on.cut, pass, on.searches.data(), on.sums.data(), found.data(), at.data(), nullptr);
  expect(at == indices, "top: indices");
  expect(same(found, values), "top: values");
  expect(same(ours, left), "top: signal");
  expect(same(cleared, adds && clear ? Floats(n) : grad), "top: gradient");
}

inline void test_top(int64_t n) {
  test_top(n, {0, n});
  test_top(n, draw_bounds(n));
}

// What a pass takes, by limits of groups, and the number from each.
struct Selected {
  Floats values;
  Ints indices;
  std::vector<unsigned long long> counts;
};

inline Selected run_select(const std::vector<int64_t>& bounds, const std::vector<int64_t>& limits,
                           const sage::cuda::Pass& pass) {
  OnTiles on(bounds, limits, 0);
  std::fill(on.sums.begin(), on.sums.end(), 0);
  Selected found{Floats(pass.n), Ints(pass.n), std::vector<unsigned long long>(limits.size())};
  sage::cuda::select(on.cut, pass, found.counts.data(), on.sums.data(), found.values.data(), found.indices.data(), nullptr);
  const auto total = on.cut.num_tiles > 0 ? on.sums[on.cut.num_tiles - 1] & INT32_MAX : 0;
  found.values.resize(total), found.indices.resize(total);
  return found;
}

// Thresholds of groups against the CPU's, at vectors that do not begin at a multiple of 16 bytes as well.
inline void test_select_groups(int64_t n, const std::vector<int64_t>& bounds) {
  const auto num = static_cast<int64_t>(bounds.size()) - 1, shift = below(4);
  const Floats signal = draw(n + shift), grad = draw(n + shift);
  const bool keep = below(2), adds = below(4);
  std::vector<int64_t> limits;
  std::vector<uint32_t> theirs_limits;
  for (int64_t g = 0; g < num; ++g) {
    const float threshold = Floats{0.0f, 1e-41f, 0.5f, 1.5f, 2.0f, INFINITY, NAN, -1.0f}[below(8)];
    limits.push_back(sage::cuda::limit_of(threshold));
    theirs_limits.push_back(sage::cpu::limit_of(threshold));
  }
  Floats ours = signal, theirs = signal, added = grad;
  float* g = adds ? added.data() + shift : nullptr;
  const Selected found = run_select(bounds, limits, {ours.data() + shift, g, n, keep, false, nullptr, 1});
  sage::cpu::Pass pass{theirs.data() + shift};
  pass.grad = g;
  pass.keep = keep;
  sage::cpu::Kept kept;
  std::vector<int64_t> counts(num);
  sage::cpu::select_groups(sage::cpu::isa(), kAlone, pass, bounds, theirs_limits, kept, counts.data());
  expect(found.indices == Ints(kept.indices, kept.indices + kept.size), "select groups: indices");
  expect(same(found.values, Floats(kept.values, kept.values + kept.size)), "select groups: values");
  expect(same(ours, theirs), "select groups: signal");
  expect(same(added, grad), "select groups: gradient");
  for (int64_t i = 0; i < num; ++i)
    expect(found.counts[i] == static_cast<unsigned long long>(counts[i]), "select groups: counts");
}

inline void look_back(volatile unsigned long long* sums, int32_t first, int32_t tile, unsigned long long* before) {
  const unsigned long long found = sage::cuda::sum_before(sums, first, tile, 7);
  if (threadIdx.x == 0) *before = found;
}

// Where the tiles before have written their own sums alone, which emulated blocks never find: they run one after another.
inline void test_look_back() {
  for (int turn = 0; turn < 100; ++turn) {
    const int32_t first = static_cast<int32_t>(below(40)), tile = first + static_cast<int32_t>(below(100));
    const int32_t summed = first + static_cast<int32_t>(below(tile - first));  // the last with the sum of all up to it
    std::vector<unsigned long long> sums(tile + 1, sage::cuda::kUpTo | 1000000);
    unsigned long long expected = 0, before = 1;
    for (int32_t at = first; at < tile; ++at) {
      const auto own = static_cast<unsigned long long>(below(1 << 20));
      expected += own;
      sums[at] = at == first || at == summed ? sage::cuda::kUpTo | expected : sage::cuda::kOwn | own;
    }
    sums[tile] = 0;
    emulate::launch(1, emulate::kWarp, [&] { look_back(sums.data(), first, tile, &before); });
    expect(before == expected, "look-back: sum");
    expect(sums[tile] == (sage::cuda::kUpTo | (expected + 7)), "look-back: word of the tile");
  }
}

// A vector of `num` groups: as many launches for one as for many.
inline std::vector<int64_t> even_bounds(int64_t num) {
  std::vector<int64_t> bounds{0};
  for (int64_t g = 0; g < num; ++g) bounds.push_back(bounds.back() + 10 + 7 * g % 40);
  return bounds;
}

template <class Run>
int64_t launches_of(const Run& run, int64_t num) {
  const int64_t before = emulate::launches;
  run(even_bounds(num));
  return emulate::launches - before;
}

inline void test_launches() {
  const auto run_top = [](const std::vector<int64_t>& bounds) { test_top(bounds.back(), bounds); };
  expect(launches_of(run_top, 1) == 6 && launches_of(run_top, 50) == 6, "top: six launches, with that of the table");
  const auto run_select_groups = [](const std::vector<int64_t>& bounds) { test_select_groups(bounds.back(), bounds); };
  expect(launches_of(run_select_groups, 1) == 2 && launches_of(run_select_groups, 50) == 2,
         "select groups: two launches, with that of the table");
}
