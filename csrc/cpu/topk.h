// The k largest magnitudes, exactly, the lower index first among equals, in about one pass over memory.
//
// A sample says between which magnitudes the k-th must lie. One fused pass at the lower of them accumulates and
// takes out the few candidates; the k-th is searched among those inside the bracket; and the rejects are written
// back. Where the sample misled, or too many are equal, three counting passes find the k-th instead. Who knows better
// may say the bracket, and no sample is taken; one that misleads costs a pass, and changes no result.
#pragma once

#include <cmath>

#include "partition.h"
#include "select.h"

namespace sage::cpu {

// Elements for which the counting passes, all in cache, are the faster way.
constexpr int64_t kSmall = 16384;

struct Rank {
  uint32_t bits;  // the r-th largest magnitude
  int64_t above;  // how many are larger
  int64_t equal;  // how many are equal to it
};

template <class At>
Rank rank_of_few(int64_t n, int64_t r, const At& at) {
  uint32_t bits[2048];
  for (int64_t i = 0; i < n; ++i) bits[i] = at(i);
  std::nth_element(bits, bits + r - 1, bits + n, std::greater<>());
  const uint32_t kth = bits[r - 1];
  // What is before it is at least as large, and what is behind it at most.
  const int64_t equal = std::count(bits, bits + n, kth), above = r - std::count(bits, bits + r, kth);
  return {kth, above, equal};
}

// The r-th largest (from 1) of magnitudes, by counting 11, 11 and 9 bits, the high ones first.
template <class At>
Rank rank(int64_t n, int64_t r, const At& at) {
  if (n <= 2048) return rank_of_few(n, r, at);
  uint32_t counts[4][2048];
  Rank found{0, 0, 0};
  int64_t left = r;
  for (const auto& [shift, width] : {std::pair{20, 11}, std::pair{9, 11}, std::pair{0, 9}}) {
    std::memset(counts, 0, sizeof counts);
    const uint32_t mask = (1u << width) - 1;
    const int high = shift + width;
    int64_t i = 0;
    if (high == 31) {
      // Four counts side by side: neighbours often fall into one bin, and would wait for each other.
      for (; i + 4 <= n; i += 4)
        for (int lane = 0; lane < 4; ++lane) ++counts[lane][at(i + lane) >> shift];
      for (; i < n; ++i) ++counts[0][at(i) >> shift];
    } else {
      for (; i < n; ++i)
        if (const uint32_t bits = at(i); bits >> high == found.bits >> high) ++counts[i & 3][bits >> shift & mask];
    }
    int64_t bin = mask, here;
    for (;; --bin) {
      here = int64_t{counts[0][bin]} + counts[1][bin] + counts[2][bin] + counts[3][bin];
      if (left <= here) break;
      left -= here;
    }
    found.bits |= static_cast<uint32_t>(bin) << shift;
    found.equal = here;
  }
  found.above = r - left;
  return found;
}

struct Bracket {
  uint32_t low, high;  // the k-th largest should be in [low, high)
  int64_t most;        // candidates, above which the bracket is useless
};

// How many candidates are still worth taking out and putting back.
inline int64_t most_candidates(int64_t n, int64_t k) { return 2 * k + n / 16; }

// From cache lines spread evenly over the vector, each at a place of its own within its stride.
inline Bracket bracket(const Pass& pass, int64_t n, int64_t k) {
  const int64_t lines = n / kLine, sampled = std::clamp<int64_t>(lines / 32, 512, 8192);
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(kBins);
  uint32_t* counts = buffer.data();
  std::memset(counts, 0, kBins * sizeof *counts);
  uint32_t largest = 0;
  sample_lines(
      pass, sampled,
      [lines, sampled](int64_t line) {
        const int64_t first = lines * line / sampled, stride = lines * (line + 1) / sampled - first;
        const uint64_t drawn = static_cast<uint64_t>(line) * 0x9e3779b97f4a7c15u >> 32;
        return first + static_cast<int64_t>(drawn * static_cast<uint64_t>(stride) >> 32);
      },
      [counts, &largest](uint32_t bits) {
        largest = std::max(largest, bits);
        ++counts[bits >> kBinShift];
      });
  // Neighbours are alike, so a line tells less than 16 elements: 5 standard deviations of independent ones.
  const double expected = static_cast<double>(k) / n * sampled * kLine, slack = 5 * std::sqrt(expected) + 8;
  int64_t bin = (largest >> kBinShift) + 1, above = 0;
  while (bin > 0 && above + counts[bin - 1] <= expected - slack) above += counts[--bin];
  Bracket found{0, static_cast<uint32_t>(bin) << kBinShift, 0};
  while (bin > 0 && above < expected + slack) above += counts[--bin];
  found.low = static_cast<uint32_t>(bin) << kBinShift;
  found.most = most_candidates(n, k);
  // Half the vector in one bin, zeros for one: counting is then better than taking it all out and putting it back.
  if (above > (static_cast<double>(found.most) / n) * sampled * kLine) found.low = kNothing;
  return found;
}

// One group of a vector: `base` is added to the indices that are written, exactly k of them.
inline void top_by_counting(const Pass& pass, int64_t n, int64_t k, int64_t base, float* values, int32_t* indices) {
  const float* signal = pass.signal;
  const Rank kth = rank(n, k, [signal](int64_t i) { return magnitude(signal[i]); });
  int64_t ties = k - kth.above;
  for (int64_t i = 0, size = 0; size < k; ++i) {
    const uint32_t bits = magnitude(pass.signal[i]);
    if (bits < kth.bits || (bits == kth.bits && ties-- <= 0)) continue;
    values[size] = pass.signal[i];
    indices[size++] = static_cast<int32_t>(base + i);
    if (pass.keep) pass.signal[i] = 0;
  }
}

inline void put_back(const List& list, const Pass& pass) {
  if (!pass.keep) return;
  for (int64_t i = 0; i < list.size; ++i) pass.signal[list.indices[i]] = list.values[i];
}

// Of the candidates, exactly k into the output and the rest back; false where the k-th is not among them.
inline bool settle(Isa isa, const std::vector<Kept>& kept, const Pass& pass, uint32_t high, int64_t k, int64_t base,
                   float* values, int32_t* indices) {
  int64_t num = 0;
  for (const Kept& part : kept) num += part.size;
  if (num < k) return false;
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(num + kOver);
  uint32_t* inside = buffer.data();
  // Only the bracket is searched; where the sample put its upper end too low, all candidates are.
  int64_t num_inside = 0, above = k;
  for (const uint32_t limit : {high, kNothing}) {
    if (above < k) break;
    num_inside = 0;
    for (const Kept& part : kept) num_inside += magnitudes_below(isa, part, limit, inside + num_inside);
    above = num - num_inside;
  }
  const Rank kth = rank(num_inside, k - above, [inside](int64_t i) { return inside[i]; });
  int64_t ties = k - above - kth.above, size = 0;
  static thread_local Kept rejects;
  rejects.size = 0;
  rejects.reserve(num - k + kOver);
  for (const Kept& part : kept) {
    if (kth.equal == ties) {
      size += partition(isa, part, kth.bits, base, values + size, indices + size, k - size, rejects);
      continue;
    }
    for (int64_t i = 0; i < part.size; ++i) {  // more are equal to the k-th than are wanted
      const uint32_t bits = magnitude(part.values[i]);
      const bool taken = bits > kth.bits || (bits == kth.bits && ties-- > 0);
      (taken ? values[size] : rejects.values[rejects.size]) = part.values[i];
      (taken ? indices[size] : rejects.indices[rejects.size]) = part.indices[i] + static_cast<int32_t>(taken ? base : 0);
      size += taken;
      rejects.size += !taken;
    }
  }
  put_back(rejects, pass);
  return true;
}

// signal += gradient, and its k largest to the output, by a bracket; false where they are not in it, or too many are.
inline bool top_within(Isa isa, const Team& team, Pass& pass, int64_t n, int64_t k, int64_t base, const Bracket& within,
                       float* values, int32_t* indices) {
  const int64_t parts = team.parts(n);
  std::vector<Kept>& kept = workspace(parts);
  std::vector<uint8_t> full(parts);
  pass.limit = within.low;
  team.each(parts, [&](int64_t part) {
    const int64_t begin = part_begin(n, parts, part), end = part_begin(n, parts, part + 1);
    full[part] = run(isa, pass, begin, end, kept[part], within.most);
  });
  pass.grad = nullptr;
  const bool whole = std::none_of(full.begin(), full.end(), [](uint8_t is) { return is; });
  if (whole && settle(isa, kept, pass, within.high, k, base, values, indices)) return true;
  for (const Kept& part : kept) put_back(part, pass);
  return false;
}

// signal += gradient, and its k largest to the output: k values and indices, ascending, `base` added to them. They
// are looked for from `low` on first, and around [low, high), where low is not 0.
inline void top(Isa isa, const Team& team, Pass pass, int64_t n, int64_t k, int64_t base, float* values,
                int32_t* indices, uint32_t low = 0, uint32_t high = 0) {
  const bool some = k > 0 && k < n;
  if (some && low) {
    const Bracket told{low, std::max(low, high), most_candidates(n, k)};
    if (top_within(isa, team, pass, n, k, base, told, values, indices)) return;
  }
  if (some && n > kSmall) {
    const Bracket found = bracket(pass, n, k);
    if (found.low != kNothing && top_within(isa, team, pass, n, k, base, found, values, indices)) return;
  }
  if (pass.grad) {
    static thread_local Kept none;
    none.size = 0;
    pass.limit = kNothing;
    select(isa, team, pass, n, none);
    pass.grad = nullptr;
  }
  if (k > 0) top_by_counting(pass, n, k, base, values, indices);
}

}  // namespace sage::cpu
