// Exact top-k by magnitude, with ties resolved to the lower index, in about one pass over memory.
//
// A sample gives a bracket that probably contains the k-th magnitude. One fused pass with the lower bound as limit
// accumulates and takes out the few candidates. The k-th magnitude is searched among the candidates inside the bracket,
// and the rejected candidates are written back. If the bracket does not hold, or too many magnitudes are equal, three
// counting passes find the k-th instead. The caller can pass a bracket, so that no sample is needed; a wrong bracket
// costs one pass and does not change the result.
#pragma once

#include <bit>
#include <cmath>

#include "partition.h"
#include "select.h"

namespace sage::cpu {

// Number of elements up to which the counting passes are faster, because everything is in cache.
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
  // Elements before the r-th are at least as large, and elements after it are at most as large.
  const int64_t equal = std::count(bits, bits + n, kth), above = r - std::count(bits, bits + r, kth);
  return {kth, above, equal};
}

// Finds the r-th largest (from 1) of n numbers of `width` bits by counting 11 bits at a time, high bits first.
template <class At>
Rank rank(int64_t n, int64_t r, int width, const At& at) {
  if (n <= 2048) return rank_of_few(n, r, at);
  uint32_t counts[4][2048];
  Rank found{0, 0, n};
  int64_t left = r;
  for (int high = width, low; high > 0; high = low) {
    low = std::max(0, high - 11);
    std::memset(counts, 0, sizeof counts);
    const uint32_t mask = (1u << (high - low)) - 1;
    int64_t i = 0;
    if (high == width) {
      // Four separate counts: neighbours often fall into the same bin, and their increments would be serialised.
      for (; i + 4 <= n; i += 4)
        for (int lane = 0; lane < 4; ++lane) ++counts[lane][at(i + lane) >> low];
      for (; i < n; ++i) ++counts[0][at(i) >> low];
    } else {
      for (; i < n; ++i)
        if (const uint32_t bits = at(i); bits >> high == found.bits >> high) ++counts[i & 3][bits >> low & mask];
    }
    int64_t bin = mask, here;
    for (;; --bin) {
      here = int64_t{counts[0][bin]} + counts[1][bin] + counts[2][bin] + counts[3][bin];
      if (left <= here) break;
      left -= here;
    }
    found.bits |= static_cast<uint32_t>(bin) << low;
    found.equal = here;
  }
  found.above = r - left;
  return found;
}

struct Bracket {
  uint32_t low, high;  // the k-th largest should be in [low, high)
  int64_t likely;      // candidates to expect: elements at or above `low`
  int64_t inside;      // those of them in the bracket
  int64_t most;        // candidates, above which the bracket is useless
};

// Writes the magnitudes at or above a floor from a sample of cache lines to the front of `out`; returns their number.
inline int64_t sample(Isa isa, const Pass& pass, int64_t n, int64_t num_lines, uint32_t floor, uint32_t* out) {
  int64_t size = 0;
  sample_lines(pass, n, num_lines, [&](const float* sums, int64_t num) {
    size += magnitudes_within(isa, sums, num, floor, kNothing, out + size);
  });
  return size;
}

// Neighbours are correlated, so a cache line gives less information than 16 independent elements; the slack is
// therefore 5 standard deviations of independent elements.
inline double slack(double expected) { return 5 * std::sqrt(expected) + 8; }

// Returns the largest number of candidates for which taking them out and putting the rejects back is worthwhile.
inline int64_t most_candidates(int64_t n, int64_t k) { return 2 * k + n / 16; }

// Estimates a bracket for each of `num` ranks from one sample, `times` as wide as the slack. A small first sample gives
// a floor, below which the elements of the full sample need not be counted.
inline void brackets(Isa isa, const Pass& pass, int64_t n, const int64_t* ranks, int64_t num, double times,
                     Bracket* found) {
  constexpr int64_t kFew = 64;
  const int64_t num_lines = std::clamp<int64_t>(n / kLine / 32, 512, 8192);
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(num_lines * kLine + kOver);
  uint32_t *seen = buffer.data(), floor = 0;
  const auto share = static_cast<double>(*std::max_element(ranks, ranks + num)) / n;
  const double few = share * kFew * kLine, most = share * num_lines * kLine;
  if (const auto enough = static_cast<int64_t>(few + times * slack(few)); enough < kFew * kLine) {
    sample(isa, pass, n, kFew, 0, seen);
    std::nth_element(seen, seen + enough, seen + kFew * kLine, std::greater<>());
    floor = seen[enough];
  }
  int64_t size = sample(isa, pass, n, num_lines, floor, seen);
  if (size < most + times * slack(most) && floor > 0) size = sample(isa, pass, n, num_lines, floor = 0, seen);

  uint32_t counts[4096] = {};
  const uint32_t largest = *std::max_element(seen, seen + size);
  const int shift = std::max(0, static_cast<int>(std::bit_width(largest - floor)) - 12);
  for (int64_t i = 0; i < size; ++i) ++counts[(seen[i] - floor) >> shift];
  for (int64_t i = 0; i < num; ++i) {
    const double expected = static_cast<double>(ranks[i]) / n * num_lines * kLine, around = times * slack(expected);
    int64_t bin = ((largest - floor) >> shift) + 1, above = 0;
    while (bin > 0 && above + counts[bin - 1] <= expected - around) above += counts[--bin];
    found[i].high = std::min(kNothing, floor + (static_cast<uint32_t>(bin) << shift));
    const int64_t larger = above, each = n / (num_lines * kLine);
    while (bin > 0 && above < expected + around) above += counts[--bin];
    found[i].low = floor + (static_cast<uint32_t>(bin) << shift);
    found[i].likely = above * each;
    found[i].inside = (above - larger) * each;
    found[i].most = most_candidates(n, ranks[i]);
  }
}

// Estimates a bracket for the k-th largest.
inline Bracket bracket(Isa isa, const Pass& pass, int64_t n, int64_t k) {
  Bracket found;
  brackets(isa, pass, n, &k, 1, 1, &found);
  // Half the vector may be in one bin, for example zeros. Counting is then faster than taking all of it out.
  if (found.likely > found.most) found.low = kNothing;
  return found;
}

// Top-k of one group of a vector by counting. It writes exactly k elements and adds `base` to their indices.
inline void top_by_counting(const Pass& pass, int64_t n, int64_t k, int64_t base, float* values, int32_t* indices) {
  const float* signal = pass.signal;
  const Rank kth = rank(n, k, 31, [signal](int64_t i) { return magnitude(signal[i]); });
  int64_t ties = k - kth.above;
  for (int64_t i = 0, size = 0; size < k; ++i) {
    const uint32_t bits = magnitude(pass.signal[i]);
    if (bits < kth.bits || (bits == kth.bits && ties-- <= 0)) continue;
    values[size] = pass.signal[i];
    indices[size++] = static_cast<int32_t>(base + i);
    if (pass.keep) pass.signal[i] = 0;
  }
}

inline void put_back(const Span& list, const Pass& pass) {
  if (!pass.keep) return;
  for (int64_t i = 0; i < list.size; ++i) pass.signal[list.indices[i]] = list.values[i];
}

// Moves exactly k of the candidates to the output, which may be the memory of the first candidates, and writes the rest
// back to the signal; returns false if the k-th is not among the candidates.
inline bool settle(Isa isa, const std::vector<Span>& candidates, const Pass& pass, const Bracket& bracket, int64_t k,
                   int64_t base, float* values, int32_t* indices) {
  int64_t num = 0;
  for (const Span& part : candidates) num += part.size;
  if (num < k) return false;
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(num + kOver);
  uint32_t* inside = buffer.data();
  const uint32_t low = bracket.low;
  // Only the bracket is searched; if its upper bound is too low, all candidates are searched.
  int64_t num_inside = 0, above = k;
  int width = 31;
  for (const uint32_t high : {bracket.high, kNothing}) {
    if (above < k) break;
    num_inside = 0;
    for (const Span& part : candidates)
      num_inside += magnitudes_within(isa, part.values, part.size, low, high, inside + num_inside);
    above = num - num_inside;
    width = static_cast<int>(std::bit_width(high - low));
  }
  Rank kth = rank(num_inside, k - above, width, [inside, low](int64_t i) { return inside[i] - low; });
  kth.bits += low;
  int64_t ties = k - above - kth.above, size = 0;
  static thread_local Kept rejects;
  rejects.size = 0;
  rejects.reserve(num - k + kOver);
  for (const Span& part : candidates) {
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
  put_back({rejects.values, rejects.indices, rejects.size}, pass);
  return true;
}

// Takes out the candidates in one pass and selects the k largest among them. Returns false if the bracket does not
// hold; the signal is then as if nothing had been taken.
inline bool top_in_bracket(Isa isa, const Team& team, Pass pass, int64_t n, const Bracket& found, int64_t k,
                           int64_t base, List& list) {
  const int64_t parts = team.parts(n), start = list.size;
  std::vector<Span> candidates;
  bool full = false;
  pass.limit = found.low;
  if (parts == 1) {  // straight to where they are wanted: the rejects among them are few
    list.reserve(start + found.likely + kBlock + kOver);
    full = run(isa, pass, 0, n, list, start + found.most);
    candidates.push_back({list.values + start, list.indices + start, list.size - start});
  } else {
    std::vector<Kept>& kept = workspace(parts);
    std::vector<uint8_t> is_full(parts);
    team.each(parts, [&](int64_t part) {
      const int64_t begin = part_begin(n, parts, part), end = part_begin(n, parts, part + 1);
      is_full[part] = run(isa, pass, begin, end, kept[part], found.most);
    });
    full = std::any_of(is_full.begin(), is_full.end(), [](uint8_t is) { return is; });
    for (const Kept& part : kept) candidates.push_back({part.values, part.indices, part.size});
    list.reserve(start + k);
  }
  const bool settled =
      !full && settle(isa, candidates, pass, found, k, base, list.values + start, list.indices + start);
  if (!settled)
    for (const Span& part : candidates) put_back(part, pass);
  list.size = settled ? start + k : start;
  return settled;
}

// Computes signal += gradient, and appends the k largest to a list by ascending index, with `base` added to the index.
// If low is not 0, [low, high) is the first bracket to try.
inline void top(Isa isa, const Team& team, Pass pass, int64_t n, int64_t k, int64_t base, List& list, uint32_t low = 0,
                uint32_t high = 0) {
  const auto within = [&](const Bracket& bracket) {
    const bool settled = top_in_bracket(isa, team, pass, n, bracket, k, base, list);
    pass.grad = nullptr;  // whatever came of it, it has been added
    return settled;
  };
  if (k > 0 && k < n) {
    if (low && within({low, std::max(low, high), k + k / 4, k / 4, most_candidates(n, k)})) return;
    if (n > kSmall) {
      const Bracket found = bracket(isa, pass, n, k);
      if (found.low != kNothing && within(found)) return;
    }
  }
  if (pass.grad) {
    static thread_local Kept none;
    none.size = 0;
    pass.limit = kNothing;
    select(isa, team, pass, n, none);
    pass.grad = nullptr;
  }
  if (k == 0) return;
  list.reserve(list.size + k);
  top_by_counting(pass, n, k, base, list.values + list.size, list.indices + list.size);
  list.size += k;
}

}  // namespace sage::cpu
