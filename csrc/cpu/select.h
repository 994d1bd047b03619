// Threshold selection in one pass over memory: accumulate, select, compact, zero, and optionally a histogram.
#pragma once

#include <limits>
#include <vector>

#include "compress.h"

namespace sage::cpu {

constexpr int64_t kBlock = 16384;

// Runs a pass over the elements [begin, end) and appends the taken ones to a list. When more than `most` have been
// taken, it takes no more elements, but still adds the gradient; returns whether this happened.
inline bool run(Isa isa, Pass pass, int64_t begin, int64_t end, List& list,
                int64_t most = std::numeric_limits<int64_t>::max()) {
  bool full = false;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t stop = std::min(at + kBlock, end);
    list.reserve(list.size + stop - at + kOver);
    list.size += block(isa, pass, at, stop, list.values + list.size, list.indices + list.size);
    if (list.size > most) {
      full = true;
      pass.limit = kNothing;
    }
  }
  return full;
}

// Returns the workspace of the calling thread: one list per part, reused across calls.
inline std::vector<Kept>& workspace(int64_t parts) {
  static thread_local std::vector<Kept> kept;
  if (static_cast<int64_t>(kept.size()) < parts) kept = std::vector<Kept>(parts);
  for (Kept& part : kept) part.size = 0;
  return kept;
}

// Concatenates the parts' lists into a list, which must be empty.
inline void join(const Team& team, const std::vector<Kept>& kept, int64_t parts, List& list) {
  std::vector<int64_t> begins{0};
  for (int64_t part = 0; part < parts; ++part) begins.push_back(begins.back() + kept[part].size);
  list.reserve(begins.back());
  list.size = begins.back();
  team.each(parts, [&](int64_t part) {
    if (kept[part].size == 0) return;
    std::memcpy(list.values + begins[part], kept[part].values, kept[part].size * sizeof(float));
    std::memcpy(list.indices + begins[part], kept[part].indices, kept[part].size * sizeof(int32_t));
  });
}

constexpr int64_t kLine = 16;  // elements of a cache line

// Calls `see` with signal + gradient of a sample of cache lines, several lines at a time, in an array with kOver more
// elements. There is one line per stride, at a pseudo-random position within it.
template <class See>
void sample_lines(const Pass& pass, int64_t n, int64_t num, const See& see) {
  constexpr int64_t kBatch = 32, kFixed = 24;
  const int64_t stride = (n / kLine << kFixed) / num;
  const auto place = [stride](int64_t line) {
    const uint64_t first = static_cast<uint64_t>(line * stride) >> kFixed;
    const uint64_t lines = (static_cast<uint64_t>((line + 1) * stride) >> kFixed) - first;
    const uint64_t drawn = static_cast<uint64_t>(line) * 0x9e3779b97f4a7c15u >> 32;
    return static_cast<int64_t>(first + (drawn * lines >> 32)) * kLine;
  };
  float sums[kBatch * kLine + kOver];
  for (int64_t line = 0, held = 0; line < num; ++line) {
    // The lines are far apart, so each is prefetched well before it is read.
    const int64_t soon = place(std::min(line + kBatch, num - 1)), begin = place(line);
    __builtin_prefetch(pass.signal + soon);
    if (pass.grad) __builtin_prefetch(pass.grad + soon);
    for (int64_t i = 0; i < kLine; ++i)
      sums[held + i] = pass.grad ? pass.signal[begin + i] + pass.grad[begin + i] : pass.signal[begin + i];
    held += kLine;
    if (held == kBatch * kLine || line == num - 1) see(sums, held), held = 0;
  }
}

// Estimates the room that a pass's list needs from a sample of cache lines, so that memory is allocated only once.
inline int64_t likely_room(const Pass& pass, int64_t n) {
  constexpr int64_t kLines = 128;
  if (n < 4 * kLines * kLine) return n + kOver;
  int64_t taken = 0;
  sample_lines(pass, n, kLines, [&](const float* sums, int64_t num) { taken += num_at_least(sums, num, pass.limit); });
  const double share = static_cast<double>(taken) / (kLine * kLines);
  return std::min(n + kOver, static_cast<int64_t>(static_cast<double>(n) * (1.25 * share + 0.001)) + kBlock + kOver);
}

// Runs a pass over n elements with a team. The taken elements are written to the list, which must be empty.
inline void select(Isa isa, const Team& team, const Pass& pass, int64_t n, List& list) {
  const int64_t parts = team.parts(n);
  if (parts == 1) {
    list.reserve(likely_room(pass, n));
    run(isa, pass, 0, n, list);
    return;
  }
  std::vector<Kept>& kept = workspace(parts);
  std::vector<std::vector<int32_t>> bins(pass.bins ? parts : 0, std::vector<int32_t>(kBins));
  team.each(parts, [&](int64_t part) {
    Pass own = pass;
    if (pass.bins) own.bins = bins[part].data();
    run(isa, own, part_begin(n, parts, part), part_begin(n, parts, part + 1), kept[part]);
  });
  for (const auto& own : bins)
    for (int64_t bin = 0; bin < kBins; ++bin) pass.bins[bin] += own[bin];
  join(team, kept, parts, list);
}

// As `select`, with a limit for each group [bounds_g, bounds_{g+1}); writes the number taken from each to `counts`.
inline void select_groups(Isa isa, const Team& team, const Pass& pass, const std::vector<int64_t>& bounds,
                          const std::vector<uint32_t>& limits, List& list, int64_t* counts) {
  const auto num = static_cast<int64_t>(limits.size());
  const int64_t n = bounds.back(), parts = team.parts(n);
  std::vector<Kept>& kept = workspace(parts);
  std::vector<std::vector<int64_t>> taken(parts, std::vector<int64_t>(num));
  if (parts == 1) {
    int64_t room = 0;
    for (int64_t group = 0; group < num; ++group) {
      Pass own = pass;
      own.limit = limits[group];
      own.signal += bounds[group];
      if (pass.grad) own.grad += bounds[group];
      room += likely_room(own, bounds[group + 1] - bounds[group]);
    }
    list.reserve(std::min(room, n + kOver));
  }
  team.each(parts, [&](int64_t part) {
    const int64_t begin = part_begin(n, parts, part), end = part_begin(n, parts, part + 1);
    List& own = parts == 1 ? list : kept[part];
    Pass within = pass;
    for (int64_t group = 0; group < num; ++group) {
      const int64_t before = own.size;
      within.limit = limits[group];
      run(isa, within, std::max(begin, bounds[group]), std::min(end, bounds[group + 1]), own);
      taken[part][group] = own.size - before;
    }
  });
  if (parts > 1) join(team, kept, parts, list);
  for (int64_t group = 0; group < num; ++group) {
    counts[group] = 0;
    for (int64_t part = 0; part < parts; ++part) counts[group] += taken[part][group];
  }
}

// Returns how many of n magnitudes are at or above a limit.
inline int64_t count_above(const Team& team, const float* x, int64_t n, uint32_t limit) {
  const int64_t parts = team.parts(n);
  std::vector<int64_t> counts(parts);
  team.each(parts, [&](int64_t part) {
    const int64_t begin = part_begin(n, parts, part);
    counts[part] = num_at_least(x + begin, part_begin(n, parts, part + 1) - begin, limit);
  });
  int64_t sum = 0;
  for (int64_t count : counts) sum += count;
  return sum;
}

// Computes only the histogram.
inline void count_magnitudes(const float* x, int64_t n, int32_t* bins, int64_t every) {
  for (int64_t i = 0; i < n; i += every * kGroup) count(bins, x + i, std::min(kGroup, n - i));
}

}  // namespace sage::cpu
