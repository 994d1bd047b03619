// Moments, order statistics and samples on a GPU against the CPU's. Include it behind the kernels of the GPU and
// emulated_segments.h.
#pragma once

#include "../../csrc/cpu/moments.h"
#include "../../csrc/cpu/sampled.h"
#include "../../csrc/cuda/moments.h"

inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline bool alike(double a, double b) { return !std::memcmp(&a, &b, sizeof a) || (a != a && b != b); }

// Writes five rows, and adds the gradient to the signal.
inline std::vector<double> moments_on_gpu(const std::vector<int64_t>& bounds, Floats& signal, const float* grad) {
  const sage::cuda::CutTable table(bounds, 0);
  Ints words(table.words.size());
  sage::cuda::upload(table.words, words.data(), nullptr);
  std::vector<sage::cuda::Moments> pieces(2 * table.num_pieces);
  std::vector<double> rows(5 * (bounds.size() - 1));
  sage::cuda::moments(table.at(words.data()), signal.data(), grad, pieces.data(), rows.data(), nullptr);
  return rows;
}

inline void expect_moments(const std::vector<double>& rows, size_t g, const sage::cpu::Moments& expected) {
  const double each[] = {expected.sum, expected.absolute, expected.square, static_cast<double>(expected.nonzero),
                         float_of_bits(expected.most)};
  for (int row = 0; row < 5; ++row) expect(alike(rows[row * rows.size() / 5 + g], each[row]), "moments of a group");
}

// The magnitudes that the searches on a GPU find.
inline Floats ranked_on_gpu(OnTiles& on, int64_t each, Floats& signal) {
  const sage::cuda::Pass pass{signal.data(), nullptr, static_cast<int64_t>(signal.size()), false, false, nullptr, 1};
  Floats magnitudes(on.searches.size());
  sage::cuda::search(on.cut, pass, static_cast<int32_t>(each), on.searches.data(), nullptr, 0, nullptr);
  sage::cuda::found(on.searches.data(), static_cast<int64_t>(magnitudes.size()), magnitudes.data(), nullptr);
  return magnitudes;
}

inline void test_ranked_moments(int64_t n, const std::vector<int64_t>& bounds) {
  const auto num = static_cast<int64_t>(bounds.size()) - 1, each = below(4);
  const Floats signal = draw(n), grad = draw(n);
  const float* added = below(2) ? grad.data() : nullptr;
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < num * each; ++i) ranks.push_back(1 + below(bounds[i / each + 1] - bounds[i / each]));
  Floats ours = signal, theirs = signal;
  const std::vector<double> rows = moments_on_gpu(bounds, ours, added);
  OnTiles on(bounds, ranks, num * each);
  const Floats found = each ? ranked_on_gpu(on, each, ours) : Floats{};
  for (int64_t g = 0; g < num; ++g) {
    std::vector<uint32_t> expected(each + 1);
    expect_moments(rows, g, sage::cpu::ranked_moments(sage::cpu::isa(), kAlone, theirs.data() + bounds[g],
                                                      added ? added + bounds[g] : nullptr, bounds[g + 1] - bounds[g],
                                                      ranks.data() + g * each, each, expected.data()));
    for (int64_t i = 0; i < each; ++i)
      expect(!std::memcmp(&found[g * each + i], &expected[i], sizeof(float)), "moments: magnitude of a rank");
  }
  expect(same(ours, theirs), "moments: signal");
}

inline void test_excess(Floats list, float limit) {
  const auto n = static_cast<int64_t>(list.size());
  Floats theirs = list;
  theirs.resize(n + 64);  // the CPU stores whole registers
  const sage::cpu::Excess expected =
      sage::cpu::excess(sage::cpu::isa(), kAlone, theirs.data(), n, sage::cpu::limit_of(limit));
  sage::cuda::Excess state;
  std::memset(&state, 0xff, sizeof state);
  std::vector<sage::cuda::Moments> pieces(2 * ((n + sage::cuda::kPiece - 1) / sage::cuda::kPiece));
  std::vector<unsigned long long> sums(sage::cuda::tiles(n) + 1);
  double out[4] = {};
  sage::cuda::excess(list.data(), n, sage::cuda::limit_of(limit), &state, pieces.data(), sums.data(), out, nullptr);
  expect(out[0] == static_cast<double>(expected.num), "excess: number");
  expect(alike(out[1], expected.num ? float_of_bits(expected.least) : 0.0), "excess: least");
  expect(alike(out[2], expected.sum) && alike(out[3], expected.square), "excess: sums");
  list.resize(expected.num), theirs.resize(expected.num);
  expect(same(list, theirs), "excess: list");
}

inline void test_moments_above(int64_t n, const std::vector<int64_t>& bounds) {
  const auto num = static_cast<int64_t>(bounds.size()) - 1;
  const Floats grad = draw(n);
  Floats signal = draw(n);
  const std::vector<double> rows = moments_on_gpu(bounds, signal, grad.data());
  Floats limits(num), expected, lists(n);
  std::vector<int64_t> bits;
  std::vector<unsigned long long> counts(num), counts_expected(num);
  for (int64_t g = 0; g < num; ++g) {
    limits[g] = Floats{0.0f, 0.5f, 2.0f, INFINITY, NAN}[below(5)];
    bits.push_back(sage::cuda::limit_of(limits[g]));
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i)
      if (sage::cuda::magnitude(signal[i]) >= sage::cuda::limit_of(limits[g])) expected.push_back(std::fabs(signal[i]));
    counts_expected[g] = expected.size() - (g ? std::accumulate(counts_expected.begin(), counts_expected.begin() + g, 0ull) : 0);
  }
  OnTiles on(bounds, bits, 0);
  std::fill(on.sums.begin(), on.sums.end(), 0);
  sage::cuda::take_above(on.cut, signal.data(), lists.data(), counts.data(), on.sums.data(), nullptr);
  expect(counts == counts_expected, "moments above: counts");
  lists.resize(expected.size());
  expect(same(lists, expected), "moments above: lists");
  if (on.cut.num_tiles > 0)
    expect((on.sums[on.cut.num_tiles - 1] & INT32_MAX) == expected.size(), "moments above: number of all");
  test_excess(lists, Floats{0.0f, 1.0f, 2.5f, 1e6f}[below(4)]);
}

inline void test_sampled(int64_t n, const std::vector<int64_t>& bounds) {
  const auto num = static_cast<int64_t>(bounds.size()) - 1;
  const Floats signal = draw(n), grad = draw(n);
  const float* added = below(2) ? grad.data() : nullptr;
  std::vector<int64_t> before{0}, wanted;
  for (int64_t g = 0; g < num; ++g) {
    const int64_t size = bounds[g + 1] - bounds[g];
    before.push_back(before.back() + (below(3) ? below(size + 1) : size));
    wanted.push_back(before[g + 1] > before[g] ? 1 + below(before[g + 1] - before[g]) : 0);
  }
  const std::vector<int64_t> ranks = wanted;
  wanted.insert(wanted.end(), bounds.begin(), bounds.end());
  Ints draws(before.back());
  for (int32_t& each : draws) each = static_cast<int32_t>(below(1 << 16));
  OnTiles on(before, wanted, num);
  Floats seen(draws.size());
  sage::cuda::sample(on.cut, before.back(), signal.data(), added, draws.data(), seen.data(), nullptr);
  const Floats found = ranked_on_gpu(on, 1, seen);
  for (int64_t g = 0; g < num; ++g) {
    const int64_t size = before[g + 1] - before[g];
    const uint32_t expected = size == 0 ? 0 : sage::cpu::sampled(signal.data() + bounds[g], added ? added + bounds[g] : nullptr,
                                                                 bounds[g + 1] - bounds[g], size, draws.data() + before[g],
                                                                 ranks[g]);
    expect(!std::memcmp(&found[g], &expected, sizeof expected), "sampled: magnitude");
  }
}

inline void test_moments(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  test_ranked_moments(n, bounds);
  test_moments_above(n, bounds);
  test_sampled(n, bounds);
}
