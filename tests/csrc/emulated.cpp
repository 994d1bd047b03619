// The CUDA kernels against brute force, on the CPU: the text that nvcc compiles, compiled by g++ with csrc/cuda/emulate.h
// in CUDA's place. EMULATED: this says that the logic is right, and nothing of how it behaves on a GPU.
#include "../../csrc/cuda/bin_codes.cu"
#include "../../csrc/cuda/bins.cu"
#include "../../csrc/cuda/bitmap.cu"
#include "../../csrc/cuda/blocks.cu"
#include "../../csrc/cuda/cast.cu"
#include "../../csrc/cuda/chunks.cu"
#include "../../csrc/cuda/code.cu"
#include "../../csrc/cuda/distinct.cu"
#include "../../csrc/cuda/elias_decode.cu"
#include "../../csrc/cuda/elias_encode.cu"
#include "../../csrc/cuda/error.cu"
#include "../../csrc/cuda/gather.cu"
#include "../../csrc/cuda/hadamard.cu"
#include "../../csrc/cuda/integers.cu"
#include "../../csrc/cuda/levels.cu"
#include "../../csrc/cuda/microscales.cu"
#include "../../csrc/cuda/moments.cu"
#include "../../csrc/cuda/pack.cu"
#include "../../csrc/cuda/product.cu"
#include "../../csrc/cuda/random_bits.cu"
#include "../../csrc/cuda/scatter.cu"
#include "../../csrc/cuda/search.cu"
#include "../../csrc/cuda/select.cu"
#include "../../csrc/cuda/signs.cu"
#include "../../csrc/cuda/statistics.cu"
#include "../../csrc/cuda/words.cu"
#include "drawn.h"
#include "emulated_groups.h"
#include "emulated_bins.h"
#include "emulated_indices.h"
#include "emulated_integers.h"
#include "emulated_codes.h"
#include "emulated_passes.h"
#include "emulated_segments.h"
#include "emulated_elias.h"
#include "emulated_moments.h"
#include "emulated_words.h"
#include "emulated_launches.h"

using namespace sage::cuda;
// A pass with its data: signal += gradient, beside the sum made by hand.
struct Case {
  Floats left, grad, signal;
  explicit Case(int64_t n) : left(draw(n)), grad(draw(n)), signal(sum(left, grad)) {}
  Pass pass() { return {left.data(), grad.data(), static_cast<int64_t>(left.size()), true, true, nullptr, 1}; }
};

void expect_taken(const Case& done, const Ints& at, const Floats& values, const Ints& indices, const std::string& op) {
  const Taken expected = take(done.signal, at);
  expect(indices == at, op + ": indices");
  expect(same(values, expected.values), op + ": values");
  expect(same(done.left, expected.left), op + ": residual");
  expect(same(done.grad, Floats(done.grad.size())), op + ": gradient");
}

void test_select(int64_t n) {
  Case given(n);
  const float threshold = Floats{0.0f, 0.5f, 2.0f, INFINITY}[below(4)];
  const int64_t every = 1 + below(3);
  const Ints at = at_or_above(given.signal, threshold);
  const Ints expected_bins =
      binned(given.signal, kBins, kGroup, every, [](float x) { return magnitude(x) >> kBinShift; });
  Ints bins(kBins);
  Pass pass = given.pass();
  pass.bins = bins.data();
  pass.every = every;
  const Selected found = run_select({0, n}, {limit_of(threshold)}, pass);
  expect_taken(given, at, found.values, found.indices, "select");
  expect(bins == expected_bins, "select: histogram");
  unsigned long long count = 0;
  count_above(given.signal.data(), n, limit_of(threshold), &count, nullptr);
  expect(count == at.size(), "count_above");
  Ints alone(kBins);
  count_magnitudes(given.signal.data(), n, alone.data(), every, nullptr);
  expect(alone == expected_bins, "count_magnitudes");
}

void test_scatter(int64_t n) {
  Starts starts{};
  Floats values, expected(n), out(n, NAN);
  Ints at;
  for (int64_t ranks = 1 + below(4); starts.num_ranks < ranks;) {
    Ints own(below(n / 2 + 1));
    for (int32_t& i : own) i = static_cast<int32_t>(below(n));  // some twice
    std::sort(own.begin(), own.end());
    for (int32_t i : own) {
      at.push_back(i);
      values.push_back(static_cast<float>(below(2000)) / 7);
      expected[i] += values.back();
    }
    starts.at[++starts.num_ranks] = static_cast<int32_t>(at.size());
  }
  for (float& x : expected) x /= static_cast<float>(starts.num_ranks);
  scatter_mean(values.data(), at.data(), starts, out.data(), n, nullptr);
  expect(same(out, expected), "scatter_mean");
  clear(out.data(), n, at.data(), static_cast<int64_t>(at.size()), nullptr);
  expect(same(out, Floats(n)), "clear");
}

void test_scan(int64_t n) {
  Ints counts(n + 1), expected(n + 1);
  for (int64_t i = 0; i < n; ++i) {
    counts[i] = static_cast<int32_t>(below(kTile));
    expected[i + 1] = expected[i] + counts[i];
  }
  const Stream stream = nullptr;
  SAGE_LAUNCH(scan, 1, stream, counts.data(), n);
  expect(counts == expected, "scan");
}

void test_pack(int64_t n) {
  const int bits = 1 + static_cast<int>(below(8));
  std::vector<uint8_t> codes(n), bytes((n * bits + 7) / 8), back(n);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(below(256));
  pack(codes.data(), n, bits, bytes.data(), nullptr);
  unpack(bytes.data(), n, bits, back.data(), nullptr);
  expect_packed(codes, bits, bytes, back);
}

// What is tested in each turn, on a vector of n elements.
using Test = void (*)(int turn, int64_t n);
#define SAGE_TEST(name) {#name, [](int, int64_t n) { name(n); }}
const std::pair<const char*, Test> kInTurns[] = {
    SAGE_TEST(test_select),
    {"test_select_groups", [](int, int64_t n) { test_select_groups(n, draw_bounds(n)); }},
    SAGE_TEST(test_top),
    SAGE_TEST(test_scatter),
    {"test_scan", [](int, int64_t n) { test_scan(std::min<int64_t>(n, 1000)); }},
    {"test_pack", [](int, int64_t n) { test_pack(std::min<int64_t>(n, 3000)); }},
    SAGE_TEST(test_random_bits),
    SAGE_TEST(test_bins),
    SAGE_TEST(test_moments),
    SAGE_TEST(test_elias),
    SAGE_TEST(test_statistics),
    SAGE_TEST(test_signs),
    SAGE_TEST(test_words),
    SAGE_TEST(test_casts),
    SAGE_TEST(test_error),
    SAGE_TEST(test_take_at),
    SAGE_TEST(test_union),
    SAGE_TEST(test_draw),
    SAGE_TEST(test_gaps),
    SAGE_TEST(test_bitmap),
    SAGE_TEST(test_momentum),
    SAGE_TEST(test_product),
    SAGE_TEST(test_hadamard),
    SAGE_TEST(test_largest_of_blocks),
    SAGE_TEST(test_chunks),
    SAGE_TEST(test_integers),
    SAGE_TEST(test_tensor_scales),
    {"test_blocks",
     [](int, int64_t n) {
       for (int codec = 0; codec < 3; ++codec) test_blocks(n, codec);
     }},
    {"test_levels",
     [](int turn, int64_t n) {
       for (int codec = turn % 2; codec < 9; codec += 2) test_levels(n, codec);
     }},
};
const std::pair<const char*, void (*)()> kOnce[] = {
    {"test_look_back", test_look_back},
    {"test_last_index", test_last_index},
    {"test_last_level", test_last_level},
    {"test_launches", test_launches},
    {"test_draw_launches", test_draw_launches},
    {"test_launches_of_groups", test_launches_of_groups},
};

// Runs the tests with the names that are given, or all of them.
int main(int num_names, char** names) {
  int num_run = 0;
  const auto is_wanted = [&](const std::string& name) {
    const bool is = num_names == 1 || std::find(names + 1, names + num_names, name) != names + num_names;
    num_run += is;
    return is;
  };
  const int64_t sizes[] = {0, 1, 33, 256, 4095, 4096, 4097, 10000, 20000};
  for (int turn = 0; turn < 36; ++turn)
    for (const auto& [name, run] : kInTurns)
      if (is_wanted(name)) run(turn, sizes[turn % 9]);
  for (const auto& [name, run] : kOnce)
    if (is_wanted(name)) run();
  expect(num_run > 0, "no test has such a name");
  std::printf("CUDA kernels, emulated: as expected (not verified on a GPU)\n");
}
