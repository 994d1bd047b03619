// What the tests of the kernels share: vectors of all kinds drawn at random, and what it is for two to be the same.
// Include it behind the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

inline std::mt19937_64 generator(0);

inline int64_t below(int64_t n) {
  return static_cast<int64_t>(generator() % static_cast<uint64_t>(std::max<int64_t>(n, 1)));
}

// End with 1 at the first thing that does not hold, saying which.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

inline void expect(bool holds, const std::string& what) { expect(holds, what.c_str()); }

// The same bits.
inline bool same(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
}

// The starts of runs of consecutive positions among n elements, and the position of each of these; some runs are empty.
inline std::pair<std::vector<int64_t>, std::vector<int64_t>> draw_positions(int64_t n) {
  std::vector<int64_t> starts{0}, firsts;
  for (int64_t num = below(3) ? below(4) : below(200); num > 0; --num) starts.push_back(below(n + 1));
  std::sort(starts.begin(), starts.end());
  for (size_t r = 0; r < starts.size(); ++r) firsts.push_back(below(3) ? below(1000) : below(int64_t{1} << 40));
  return {starts, firsts};
}

// Normal, few distinct, constant, denormal, mostly zero, with NaN and infinities, sorted, or of two scales.
inline Floats draw(int64_t n) {
  static const float odd[] = {NAN, INFINITY, -INFINITY, -0.0f, 0.0f, 1e-41f, -1e-41f, 1.0f, -1.0f, 3e38f};
  std::normal_distribution<float> normal;
  const int64_t kind = below(8);
  Floats x(n);
  for (int64_t i = 0; i < n; ++i) {
    const float drawn = normal(generator);
    x[i] = kind == 1   ? std::round(drawn * 2)
           : kind == 2 ? 1.5f
           : kind == 3 ? drawn * 1e-41f
           : kind == 4 ? (below(50) ? 0.0f : drawn)
           : kind == 5 ? (below(20) ? drawn : odd[below(10)])
           : kind == 7 ? drawn * (i < n / 100 ? 1e3f : 1e-3f)
                       : drawn;
  }
  if (kind == 6) std::sort(x.begin(), x.end());
  return x;
}

inline Floats sum(const Floats& a, const Floats& b) {
  Floats x(a);
  for (size_t i = 0; i < x.size(); ++i) x[i] += b[i];
  return x;
}

// What is left of a signal, and what was taken, when `at` are taken.
struct Taken {
  Floats left, values;
};

inline Taken take(const Floats& signal, const Ints& at) {
  Taken taken{signal, {}};
  for (int32_t i : at) {
    taken.values.push_back(signal[i]);
    taken.left[i] = 0;
  }
  return taken;
}

// Where |x| is at or above a threshold, or x is NaN.
inline Ints at_or_above(const Floats& x, float threshold) {
  Ints at;
  for (size_t i = 0; i < x.size(); ++i)
    if (!(std::fabs(x[i]) < threshold)) at.push_back(static_cast<int32_t>(i));
  return at;
}

// Where the k largest |x| are, the lower index first among equals, in ascending order; `magnitude` is the kernels' own.
template <class Magnitude>
Ints at_largest(const Floats& x, int64_t k, const Magnitude& magnitude) {
  Ints at(x.size());
  for (size_t i = 0; i < at.size(); ++i) at[i] = static_cast<int32_t>(i);
  std::stable_sort(at.begin(), at.end(), [&](int a, int b) { return magnitude(x[a]) > magnitude(x[b]); });
  at.resize(k);
  std::sort(at.begin(), at.end());
  return at;
}

// A table of up to eight tiles and runs, which may overlap, and how many elements are taken from all of them.
inline std::pair<Ints, int32_t> draw_chunks(int64_t n) {
  Ints table;
  int64_t total = 0;
  for (int64_t num = n ? below(9) : 0; num > 0; --num) {
    const int64_t most = std::min<int64_t>(n, 4096), length = below(3) ? most : 1 + below(most);
    const int64_t rows = (length - 1) / 64, rest = (length - 1) % 64;
    const int64_t stride = rows && below(3) ? 64 + below((n - 1 - rest) / rows - 63) : 64;
    for (const int64_t each : {below(n - rows * stride - rest), stride, length, total}) table.push_back(static_cast<int32_t>(each));
    const int64_t counts[] = {0, 1, (length + 63) / 64, length / 2, length, below(length + 1)};
    total += counts[below(6)];
  }
  return {table, static_cast<int32_t>(total)};
}

// The largest elements of each chunk, and where they are in it.
template <class Magnitude>
std::pair<Floats, Ints> largest_of_each(const Floats& x, const Ints& table, int32_t total, const Magnitude& magnitude) {
  Floats values;
  Ints found;
  for (size_t p = 0; p < table.size(); p += 4) {
    Floats chunk;
    for (int64_t i = 0; i < table[p + 2]; ++i) chunk.push_back(x[table[p] + i / 64 * table[p + 1] + i % 64]);
    const int32_t stop = p + 4 < table.size() ? table[p + 7] : total;
    const Ints at = at_largest(chunk, stop - table[p + 3], magnitude);
    found.insert(found.end(), at.begin(), at.end());
    for (const int32_t i : at) values.push_back(chunk[i]);
  }
  return {values, found};
}

// How many of |x| are in each bin, in every `every`-th group.
template <class Bin>
Ints binned(const Floats& x, int64_t num_bins, int64_t group, int64_t every, const Bin& bin) {
  Ints bins(num_bins);
  for (size_t i = 0; i < x.size(); ++i)
    if (static_cast<int64_t>(i) / group % every == 0) ++bins[bin(x[i])];
  return bins;
}

// Codes of `bits` bits and their bytes: each bit where it belongs, and every code back out of them.
inline void expect_packed(const std::vector<uint8_t>& codes, int bits, const std::vector<uint8_t>& bytes,
                          const std::vector<uint8_t>& back) {
  const auto n = static_cast<int64_t>(codes.size());
  for (int64_t bit = 0; bit < n * bits; ++bit)
    expect((bytes[bit / 8] >> (bit % 8) & 1) == (codes[bit / bits] >> (bit % bits) & 1), "pack");
  for (int64_t i = 0; i < n; ++i) expect(back[i] == (codes[i] & ((1 << bits) - 1)), "unpack");
}
