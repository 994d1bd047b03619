// Threshold selection in one pass over memory: accumulate, select, compact, zero; and a histogram on the way.
#pragma once

#include <limits>
#include <vector>

#include "compress.h"

namespace sage::cpu {

constexpr int64_t kBlock = 16384;  // 64 KB of floats: what a block wrote is still in cache when it is read again

constexpr int kBinShift = 17;  // bins are the exponent and the 6 first bits of the mantissa: 1.1 to 1.6 % wide
constexpr int64_t kBins = int64_t{1} << (31 - kBinShift);

// Counts, per bin of magnitude, in every `every`-th group of 64 elements, of the whole vector's groups.
struct Histogram {
  int32_t* bins = nullptr;
  int64_t every = 1;
};

// Before the pass and not in it: the few groups that are looked at are then in cache for it, and it stays simple.
inline void count_groups(const Pass& pass, int64_t begin, int64_t end, const Histogram& histogram) {
  const int64_t step = histogram.every * kGroup;
  for (int64_t group = (begin + step - 1) / step * step; group < end; group += step)
    for (int64_t i = group; i < std::min(group + kGroup, end); ++i)
      ++histogram.bins[magnitude(pass.grad ? pass.signal[i] + pass.grad[i] : pass.signal[i]) >> kBinShift];
}

// Elements [begin, end) of a pass, appended to `kept`. Once more than `most` were taken it takes no more, but
// still adds; returns whether that happened.
inline bool run(Isa isa, Pass pass, int64_t begin, int64_t end, Kept& kept, Histogram histogram = {},
                int64_t most = std::numeric_limits<int64_t>::max()) {
  bool full = false;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t stop = std::min(at + kBlock, end);
    kept.reserve(kept.size + stop - at + kOver);
    if (histogram.bins) count_groups(pass, at, stop, histogram);
    kept.size += block(isa, pass, at, stop, kept.values.data() + kept.size, kept.indices.data() + kept.size);
    if (kept.size > most) {
      full = true;
      pass.limit = kNothing;
    }
  }
  return full;
}

// Workspace of a thread that calls: one list per part, kept between calls.
inline std::vector<Kept>& workspace(int64_t parts) {
  static thread_local std::vector<Kept> kept;
  if (static_cast<int64_t>(kept.size()) < parts) kept = std::vector<Kept>(parts);
  for (Kept& part : kept) part.size = 0;
  return kept;
}

// A pass over n elements by a team. What was taken is in the lists returned, part after part.
inline std::vector<Kept>& select(Isa isa, const Team& team, const Pass& pass, int64_t n, Histogram histogram = {}) {
  const int64_t parts = team.parts(n);
  std::vector<Kept>& kept = workspace(parts);
  std::vector<std::vector<int32_t>> own(histogram.bins ? parts - 1 : 0);
  team.each(parts, [&](int64_t part) {
    Histogram mine = histogram;
    if (histogram.bins && part > 0) {
      own[part - 1].assign(kBins, 0);
      mine.bins = own[part - 1].data();
    }
    run(isa, pass, part_begin(n, parts, part), part_begin(n, parts, part + 1), kept[part], mine);
  });
  for (const auto& bins : own)
    for (int64_t bin = 0; bin < kBins; ++bin) histogram.bins[bin] += bins[bin];
  return kept;
}

inline int64_t total(const std::vector<Kept>& kept) {
  int64_t size = 0;
  for (const Kept& part : kept) size += part.size;
  return size;
}

inline void copy(const std::vector<Kept>& kept, float* values, int32_t* indices) {
  for (const Kept& part : kept) {
    if (part.size == 0) continue;
    std::memcpy(values, part.values.data(), part.size * sizeof(float));
    std::memcpy(indices, part.indices.data(), part.size * sizeof(int32_t));
    values += part.size;
    indices += part.size;
  }
}

// How many of n magnitudes are at or above a limit.
inline int64_t count_above(const Team& team, const float* x, int64_t n, uint32_t limit) {
  const int64_t parts = team.parts(n);
  std::vector<int64_t> counts(parts);
  team.each(parts, [&](int64_t part) {
    int64_t count = 0;
    const int64_t end = part_begin(n, parts, part + 1);
    for (int64_t at = part_begin(n, parts, part); at < end; at += kBlock) {
      uint32_t below = 0;  // 32 bits in the inner loop, so that it is vectorized
      const int64_t stop = std::min(at + kBlock, end);
      for (int64_t i = at; i < stop; ++i) below += magnitude(x[i]) < limit;
      count += stop - at - below;
    }
    counts[part] = count;
  });
  int64_t sum = 0;
  for (int64_t count : counts) sum += count;
  return sum;
}

// The histogram alone, of every `every`-th group.
inline void count_magnitudes(const float* x, int64_t n, Histogram histogram) {
  count_groups(Pass{const_cast<float*>(x)}, 0, n, histogram);
}

}  // namespace sage::cpu
