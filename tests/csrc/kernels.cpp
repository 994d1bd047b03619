// The CPU kernels against brute force, without torch, for every instruction set: built with sanitizers by
// `make sanitize`. Exits with 1 at the first difference, saying where.
#include <array>
#include <thread>

#include "../../csrc/cpu/bin_codes.h"
#include "../../csrc/cpu/cast.h"
#include "../../csrc/cpu/code.h"
#include "../../csrc/cpu/distinct.h"
#include "../../csrc/cpu/elias.h"
#include "../../csrc/cpu/error.h"
#include "../../csrc/cpu/gather.h"
#include "../../csrc/cpu/levels.h"
#include "../../csrc/cpu/scaled.h"
#include "../../csrc/cpu/moments.h"
#include "../../csrc/cpu/pack.h"
#include "../../csrc/cpu/philox.h"
#include "../../csrc/cpu/sampled.h"
#include "../../csrc/cpu/scatter.h"
#include "../../csrc/cpu/signs.h"
#include "../../csrc/cpu/sums.h"
#include "../../csrc/cpu/topk.h"
#include "../../csrc/cpu/union.h"
#include "../../csrc/cpu/words.h"
#include "drawn.h"
#include "bins.h"
#include "casts.h"
#include "chunks.h"
#include "elias.h"
#include "gather.h"
#include "hadamard.h"
#include "integers.h"
#include "levels.h"
#include "microscales.h"
#include "product.h"

using namespace sage::cpu;
const Team kTeams[] = {{1, {}}, {3, [](int64_t parts, const std::function<void(int64_t)>& work) {
                          std::vector<std::thread> threads;
                          for (int64_t part = 0; part < parts; ++part) threads.emplace_back(work, part);
                          for (auto& thread : threads) thread.join();
                        }}};

void test_select(Isa isa, const Team& team, int64_t n) {
  const Floats residual = draw(n), grad = draw(n), signal = sum(residual, grad);
  const float threshold = Floats{0.0f, -1.0f, NAN, 1e-41f, 0.5f, 3.0f, INFINITY}[below(7)];
  const int64_t every = 1 + below(3);
  const Ints at = at_or_above(signal, threshold);
  const Ints expected_bins =
      binned(signal, kBins, kGroup, every, [](float x) { return magnitude(x) >> kBinShift; });
  Ints bins(kBins);
  const Taken expected = take(signal, at);
  Floats left = residual, cleared = grad;
  Pass pass{left.data()};
  pass.grad = cleared.data();
  pass.limit = limit_of(threshold);
  pass.clear = below(2);
  pass.bins = bins.data();
  pass.every = every;
  Kept list;
  select(isa, team, pass, n, list);
  expect(Ints(list.indices, list.indices + list.size) == at, "select: indices");
  expect(same({list.values, list.values + list.size}, expected.values), "select: values");
  expect(same(left, expected.left), "select: residual");
  expect(same(cleared, pass.clear ? Floats(n) : grad), "select: gradient");
  expect(bins == expected_bins, "select: histogram");
  expect(count_above(team, signal.data(), n, pass.limit) == static_cast<int64_t>(at.size()), "count_above");
}

void test_top(Isa isa, const Team& team, int64_t n) {
  const Floats residual = draw(n), grad = draw(n), signal = sum(residual, grad);
  const int64_t choices[] = {0, std::min<int64_t>(1, n), n, n / 1000, n / 10, below(n + 1)}, k = choices[below(6)];
  const Ints at = at_largest(signal, k, magnitude);
  const Taken expected = take(signal, at);
  Floats left = residual, added = grad;
  Kept list;
  Pass pass{left.data()};
  pass.grad = added.data();
  const float told[] = {0, 0, 1e-41f, 0.5f, 2, INFINITY};
  top(isa, team, pass, n, k, 0, list, limit_of(told[below(6)]), limit_of(told[below(6)]));
  expect(Ints(list.indices, list.indices + list.size) == at, "top: indices");
  expect(same({list.values, list.values + list.size}, expected.values), "top: values");
  expect(same(left, expected.left), "top: residual");
}

// The sum of x in the order that sums.h defines.
double ordered_sum(const std::vector<double>& x) {
  std::vector<double> chunks;
  for (size_t begin = 0; begin < x.size(); begin += kChunk) {
    double lanes[32] = {};
    for (size_t i = begin; i < std::min(x.size(), begin + kChunk); ++i) lanes[i % 32] += x[i];
    for (int half = 16; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    chunks.push_back(lanes[0]);
  }
  for (size_t stride = 1; stride < chunks.size(); stride *= 2)
    for (size_t i = 0; i + stride < chunks.size(); i += 2 * stride) chunks[i] += chunks[i + stride];
  return chunks.empty() ? 0 : chunks[0];
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// The sum of f(x) over a vector, in that order.
template <class F>
double ordered_sum(const Floats& x, const F& f) {
  std::vector<double> wide;
  for (float each : x) wide.push_back(f(each));
  return ordered_sum(wide);
}

void test_moments(Isa isa, const Team& team, int64_t n) {
  const Floats residual = draw(n), grad = draw(n), signal = sum(residual, grad);
  std::vector<uint32_t> falling;
  for (float x : signal) falling.push_back(magnitude(x));
  const std::vector<uint32_t> magnitudes = falling;
  std::sort(falling.rbegin(), falling.rend());
  Floats left = residual;
  const int64_t num = below(4);
  int64_t ranks[3];
  uint32_t found[3];
  for (int64_t i = 0; i < num; ++i) ranks[i] = 1 + (below(2) ? below(n) : below(1 + n / 100));
  const Moments all = ranked_moments(isa, team, left.data(), grad.data(), n, ranks, num, found);
  for (int64_t i = 0; i < num; ++i) expect(found[i] == (n ? falling[ranks[i] - 1] : 0), "moments: rank");
  expect(same(left, signal), "moments: residual");
  expect(same(all.sum, ordered_sum(signal, [](double x) { return x; })), "moments: sum");
  expect(same(all.absolute, ordered_sum(signal, [](double x) { return std::fabs(x); })), "moments: absolute");
  expect(same(all.square, ordered_sum(signal, [](double x) { return x * x; })), "moments: square");
  expect(all.nonzero == n - std::count(falling.begin(), falling.end(), 0u), "moments: nonzero");
  expect(all.most == (n ? falling[0] : 0), "moments: largest");

  const float limits[] = {0, 1e-41f, 0.5f, 2, INFINITY};
  const uint32_t limit = limit_of(limits[below(5)]), higher = limit_of(limits[below(5)]);
  const int64_t parts = team.parts(n);
  Band band;
  band.begin(limit, kNothing, parts, 0);
  moments(isa, team, left.data(), nullptr, n, parts, &band, 1);
  Floats list(band.size()), expected;
  band.copy(reinterpret_cast<uint32_t*>(list.data()));
  for (float x : signal)
    if (magnitude(x) >= limit) expected.push_back(std::fabs(x));
  expect(same(list, expected), "moments: list");
  expected.erase(std::remove_if(expected.begin(), expected.end(), [=](float x) { return magnitude(x) < higher; }),
                 expected.end());
  const Excess over = excess(isa, team, list.data(), static_cast<int64_t>(list.size()), higher);
  list.resize(over.num);
  expect(same(list, expected), "excess: list");
  float least = INFINITY;
  uint32_t least_bits = kNothing;
  for (float x : expected) least_bits = std::min(least_bits, magnitude(x));
  std::memcpy(&least, &least_bits, sizeof least);
  expect(over.least == least_bits, "excess: least");
  expect(same(over.sum, ordered_sum(expected, [=](float x) { return static_cast<double>(x - least); })), "excess: sum");
  expect(same(over.square, ordered_sum(expected, [=](float x) { const double y = x - least; return y * y; })),
         "excess: square");
}

void test_sampled(int64_t n) {
  const Floats residual = draw(n), grad = draw(n), signal = sum(residual, grad);
  const int64_t num = 1 + below(n), rank = 1 + below(num);
  Ints draws(num);
  for (int32_t& each : draws) each = static_cast<int32_t>(below(65536));
  std::vector<uint32_t> seen;
  for (int64_t i = 0; i < num; ++i) {
    const int64_t begin = i * n / num, end = (i + 1) * n / num;
    seen.push_back(magnitude(signal[begin + (draws[i] * (end - begin) >> 16)]));
  }
  std::sort(seen.rbegin(), seen.rend());
  expect(sampled(residual.data(), grad.data(), n, num, draws.data(), rank) == seen[rank - 1], "sampled");
}

void test_select_groups(Isa isa, const Team& team, int64_t n) {
  const Floats residual = draw(n), grad = draw(n), signal = sum(residual, grad);
  std::vector<int64_t> bounds{0, below(n + 1), below(n + 1), n};
  std::sort(bounds.begin(), bounds.end());
  const float thresholds[] = {0, 1e-41f, 0.5f, 3, INFINITY};
  std::vector<uint32_t> limits;
  Ints at;
  std::vector<int64_t> expected, counts(3);
  for (int group = 0; group < 3; ++group) {
    limits.push_back(limit_of(thresholds[below(5)]));
    const size_t before = at.size();
    for (int64_t i = bounds[group]; i < bounds[group + 1]; ++i)
      if (magnitude(signal[i]) >= limits[group]) at.push_back(static_cast<int32_t>(i));
    expected.push_back(static_cast<int64_t>(at.size() - before));
  }
  const Taken taken = take(signal, at);
  Floats left = residual, added = grad;
  Pass pass{left.data()};
  pass.grad = added.data();
  Kept list;
  select_groups(isa, team, pass, bounds, limits, list, counts.data());
  expect(Ints(list.indices, list.indices + list.size) == at, "select_groups: indices");
  expect(same({list.values, list.values + list.size}, taken.values), "select_groups: values");
  expect(same(left, taken.left), "select_groups: residual");
  expect(counts == expected, "select_groups: counts");
}

void test_scatter(const Team& team, int64_t n) {
  const int64_t num_ranks = 1 + below(5);
  const bool sorted = below(4), zeroed = below(2);
  std::vector<Floats> values;
  std::vector<Ints> at;
  std::vector<Sparse> ranks;
  Floats expected(n), out(n, zeroed ? 0.0f : NAN);
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const int64_t num = n ? below(n / (1 + below(50)) + 1) : 0;
    values.push_back(draw(num));
    for (float& value : values.back()) value = std::isnan(value) ? 1.0f : value;  // which NaN comes out is not defined
    Ints own(num);
    for (int32_t& i : own) i = static_cast<int32_t>(below(n));
    if (sorted) std::sort(own.begin(), own.end());
    at.push_back(own);
  }
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    for (size_t i = 0; i < at[rank].size(); ++i) expected[at[rank][i]] += values[rank][i];
    ranks.push_back({values[rank].data(), at[rank].data(), static_cast<int64_t>(at[rank].size())});
  }
  for (float& x : expected) x /= static_cast<float>(num_ranks);
  scatter_mean(team, ranks, zeroed, out.data(), n);
  for (int64_t i = 0; i < n; ++i)
    expect(!std::memcmp(&out[i], &expected[i], 4) || (std::isnan(out[i]) && std::isnan(expected[i])), "scatter_mean");
  for (const Ints& own : at) clear(out.data(), own.data(), static_cast<int64_t>(own.size()));
  expect(same(out, Floats(n)), "clear");
}

void test_pack(Isa isa, int64_t n) {
  const int bits = 1 + static_cast<int>(below(8));
  std::vector<uint8_t> codes(n), bytes(packed_bytes(n, bits)), back(n);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(below(256));
  pack(isa, codes.data(), n, bits, bytes.data());
  unpack(isa, bytes.data(), n, bits, back.data());
  expect_packed(codes, bits, bytes, back);
}

void test_code(int64_t n) {
  Ints at, back;
  const int64_t sparse = 1 + below(3000);
  for (int64_t i = 0; i < n; ++i)
    if (below(sparse) == 0) at.push_back(static_cast<int32_t>(i * 700));
  const int64_t num = static_cast<int64_t>(at.size());
  std::vector<uint8_t> bytes(gap_bytes(at.data(), num));
  encode_gaps(at.data(), num, bytes.data());
  back.resize(num);
  expect(decode_gaps(bytes.data(), static_cast<int64_t>(bytes.size()), num, back.data()) && back == at, "gaps");
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(below(256));  // whatever comes, it stays inside
  decode_gaps(bytes.data(), static_cast<int64_t>(bytes.size()), num, back.data());
  for (int32_t& i : at) i /= 700;
  bytes.assign((n + 7) / 8, 0);
  expect(encode_bitmap(at.data(), num, n, bytes.data()), "bitmap: encode");
  expect(count_bits(bytes.data(), static_cast<int64_t>(bytes.size())) == num, "bitmap: count");
  decode_bitmap(bytes.data(), static_cast<int64_t>(bytes.size()), back.data());
  expect(back == at, "bitmap: decode");
}

std::vector<int64_t> draw_bounds(int64_t n) {
  std::vector<int64_t> bounds{0, n};
  for (int64_t i = below(6); i > 0; --i) bounds.push_back(below(n + 1));
  std::sort(bounds.begin(), bounds.end());
  return bounds;
}

void test_statistics(Isa isa, const Team& team, int64_t n) {
  const Floats residual = draw(n), grad = draw(n), signal = sum(residual, grad);
  const std::vector<int64_t> bounds = draw_bounds(n);
  for (Kind kind : {Kind::absolute, Kind::sides, Kind::squares, Kind::largest}) {
    Floats left = residual, same_left = residual;
    const auto found = statistics(isa, team, kind, left.data(), grad.data(), bounds);
    const auto plain = statistics(Isa::scalar, kTeams[0], kind, same_left.data(), grad.data(), bounds);
    expect(same(left, signal), "statistics: signal");
    for (size_t g = 0; g + 1 < bounds.size(); ++g) {
      long double sum = 0;
      int64_t num_below = 0;
      uint32_t largest = 0;
      for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i) {
        const long double a = signal[i];
        sum += kind == Kind::absolute ? std::abs(a) : kind == Kind::squares ? a * a : a < 0 ? a : 0;
        num_below += a < 0;
        largest = std::max(largest, magnitude(signal[i]));
      }
      if (kind == Kind::squares || kind == Kind::largest) expect(found[g].largest == largest, "statistics: largest");
      if (kind == Kind::sides) expect(found[g].below == num_below, "statistics: below");
      if (kind != Kind::largest && std::isfinite(sum))
        expect(std::abs(found[g].sum - sum) <= 1e-12L * std::abs(sum), "statistics: sum");
      expect(!std::memcmp(&found[g].sum, &plain[g].sum, 8) || std::isnan(found[g].sum), "statistics: same bits");
    }
  }
}

void test_signs(Isa isa, const Team& team, int64_t n) {
  const Floats x = draw(n), y = draw(n);
  const std::vector<int64_t> bounds = draw_bounds(n);
  const int64_t num_groups = static_cast<int64_t>(bounds.size()) - 1, num_bytes = packed_bytes(n, 1);
  const Floats low{-1.0f, -2.0f, -3.0f, -4.0f, -5.0f, -6.0f, -7.0f}, high{0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f};
  std::vector<uint8_t> bits(2 * num_bytes);
  Floats left = x, second = y, mean(n);
  write_signs(isa, team, {left.data(), bounds.data(), num_groups, low.data(), high.data(), bits.data()}, true, n);
  write_signs(isa, team, {second.data(), bounds.data(), num_groups, low.data(), high.data(), bits.data() + num_bytes},
              false, n);
  Floats lows, highs;
  for (int w = 0; w < 2; ++w) {
    lows.insert(lows.end(), low.begin(), low.begin() + num_groups);
    highs.insert(highs.end(), high.begin(), high.begin() + num_groups);
  }
  mean_signs(isa, team, {mean.data(), bounds.data(), num_groups, lows.data(), highs.data(), bits.data(), num_bytes, 2, 2,
                         false, false}, n);
  for (int64_t g = 0; g < num_groups; ++g)
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i) {
      const float sent = x[i] < 0 ? low[g] : high[g], error = x[i] - sent;
      expect((bits[i / 8] >> i % 8 & 1) == !(x[i] < 0), "signs: bits");
      expect(left[i] == (std::isfinite(error) ? error : 0.0f), "signs: error");
      expect(mean[i] == (sent + (y[i] < 0 ? low[g] : high[g])) / 2, "signs: mean");
    }
  expect(same(second, y), "signs: signal");
  Floats momentum(n, 0.75f);
  std::vector<uint8_t> votes(num_bytes);
  const uint32_t most = momentum_signs(isa, team, {momentum.data(), x.data(), 0.9f, 0.1f, votes.data()}, n);
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float m = std::fmaf(std::isfinite(x[i]) ? x[i] : 0.0f, 0.1f, 0.75f * 0.9f);
    expect(!std::memcmp(&momentum[i], &m, 4), "momentum");
    expect((votes[i / 8] >> i % 8 & 1) == !(m < 0), "momentum: bits");
    largest = std::max(largest, magnitude(x[i]));
  }
  expect(most == largest, "momentum: largest");
  bits.resize(num_bytes);
  std::vector<uint8_t> back(num_bytes, 0);
  std::vector<uint32_t> by_column(num_words(n)), by_group;
  words_by_column(bits.data(), n, by_column.data());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t num = num_words(n);
    expect((by_column[i % num] >> (31 - i / num) & 1) == (x[i] < 0), "words by column");
  }
  bits_by_column(by_column.data(), n, back.data());
  expect(back == bits, "bits by column");
  int64_t num = 0;
  for (int64_t g = 0; g < num_groups; ++g) num += num_words(bounds[g + 1] - bounds[g]);
  by_group.resize(num);
  words_by_group(bits.data(), bounds, by_group.data());
  num = 0;
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t i = 0; i < bounds[g + 1] - bounds[g]; ++i)
      expect((by_group[num + i / 32] >> (31 - i % 32) & 1) == (x[bounds[g] + i] < 0), "words by group");
    num += num_words(bounds[g + 1] - bounds[g]);
  }
  std::fill(back.begin(), back.end(), uint8_t{0xff});
  bits_by_group(by_group.data(), bounds, back.data());
  expect(back == bits, "bits by group");
}

void test_error(const Team& team, int64_t n) {
  const Floats signal = draw(n), sent = draw(n);
  Floats left = signal;
  keep_error(team, left.data(), sent.data(), n);
  for (int64_t i = 0; i < n; ++i) {
    const float expected = std::isfinite(signal[i] - sent[i]) ? signal[i] - sent[i] : 0.0f;
    expect(!std::memcmp(&left[i], &expected, 4), "error");
  }
}

void test_random_bits(Isa isa, int64_t n) {
  Ints whole(n), part(n), plain(n);
  random_bits(isa, 12345, 0, n, whole.data());
  random_bits(Isa::scalar, 12345, 0, n, plain.data());
  expect(whole == plain, "random bits: same");
  const int64_t first = below(n + 1);
  random_bits(isa, 12345, first, n - first, part.data());
  expect(std::equal(part.begin(), part.begin() + (n - first), whole.begin() + first), "random bits: first");
}

int main() {
  for (Isa set : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (set > isa()) continue;
    for (int turn = 0; turn < 60; ++turn) {
      const int64_t n = Ints{0, 1, 15, 16, 17, 63, 64, 65, 1000, 16384, 16385, 50001, 200003}[turn % 13];
      for (const Team& team : kTeams) {
        test_select(set, team, n);
        test_top(set, team, n);
        test_moments(set, team, n);
        test_select_groups(set, team, n);
        test_scatter(team, n);
        test_statistics(set, team, n);
        test_signs(set, team, n);
        test_bins(set, team, n);
        test_take_at(team, n);
        test_error(team, n);
        test_product(set, team, n);
        test_thin_product(set, team, n);
        test_chunks(set, team, n);
        test_hadamard(set, team, n, draw_bounds(n));
        test_largest_of_blocks(set, team, n, draw_bounds(n));
        test_integers(set, team, n, draw_bounds(n));
        test_tensor_scales(set, team, n, draw_bounds(n));
        test_cast<Format::fp16>(set, team, n);
        test_cast<Format::bf16>(set, team, n);
        test_elias(set, team, n);
        test_levels(set, team, n, static_cast<Codec>(turn % 9), draw_bounds(n));
        test_blocks(set, team, n, static_cast<Codec>(turn % 3), draw_bounds(n));
        test_scaled(set, team, n, std::array{Codec::e4m3, Codec::e5m2, Codec::e2m1}[turn % 3], draw_bounds(n));
        test_scaled(set, team, n, Codec::e2m1, {0, n / 3 / 2 * 2, n / 2 * 2, n});
      }
      test_pack(set, n);
      if (n > 0) test_sampled(n);
      test_random_bits(set, n);
      test_distinct(set, n);
      test_union(n);
      test_code(std::min<int64_t>(n, 60000));
    }
    std::printf("%s: as expected\n", set == Isa::scalar ? "scalar" : set == Isa::avx2 ? "AVX2" : "AVX-512");
  }
}
