// The k largest magnitudes, exactly, the lower index first among equals, in about one pass over memory.
//
// A sample says between which magnitudes the k-th must lie. One fused pass at the lower of them accumulates and
// takes out the few candidates; the k-th is searched among those inside the bracket; and the rejects are written
// back. Where the sample misled, or too many are equal, three counting passes find the k-th instead.
#pragma once

#include <cmath>

#include "select.h"

namespace sage::cpu {

// Elements for which the counting passes, all in cache, are the faster way.
constexpr int64_t kSmall = 16384;

struct Rank {
  uint32_t bits;  // the r-th largest magnitude
  int64_t above;  // how many are larger
  int64_t equal;  // how many are equal to it
};

// The r-th largest (from 1) of magnitudes, by counting 11, 11 and 9 bits, the high ones first.
template <class At>
Rank rank(int64_t n, int64_t r, const At& at) {
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

// From cache lines spread evenly over the vector, each at a place of its own within its stride.
inline Bracket bracket(const Pass& pass, int64_t n, int64_t k) {
  constexpr int64_t kLine = 16;
  const int64_t lines = n / kLine, sampled = std::clamp<int64_t>(lines / 16, 512, 8192);
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(kBins);
  uint32_t* counts = buffer.data();
  std::memset(counts, 0, kBins * sizeof *counts);
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (int64_t line = 0; line < sampled; ++line) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const int64_t first = lines * line / sampled, stride = lines * (line + 1) / sampled - first;
    const int64_t i = (first + static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(stride))) * kLine;
    for (int64_t lane = i; lane < i + kLine; ++lane)
      ++counts[magnitude(pass.grad ? pass.signal[lane] + pass.grad[lane] : pass.signal[lane]) >> kBinShift];
  }
  // Neighbours are alike, so a line tells less than 16 elements: 6 standard deviations of independent ones.
  const double expected = static_cast<double>(k) / n * sampled * kLine, slack = 6 * std::sqrt(expected) + 8;
  int64_t bin = kBins, above = 0;
  while (bin > 0 && above + counts[bin - 1] <= expected - slack) above += counts[--bin];
  Bracket found{0, static_cast<uint32_t>(bin) << kBinShift, 0};
  while (bin > 0 && above < expected + slack) above += counts[--bin];
  found.low = static_cast<uint32_t>(bin) << kBinShift;
  found.most = 2 * k + n / 16;
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

// Of the candidates, exactly k into the output and the rest back; false where the k-th is not among them.
inline bool settle(std::vector<Kept>& kept, const Pass& pass, const Bracket& bracket, int64_t k, int64_t base,
                   float* values, int32_t* indices) {
  if (total(kept) < k) return false;
  static thread_local Buffer<uint32_t> inside;
  inside.reserve(total(kept));
  int64_t num_inside = 0, above = 0;
  for (const Kept& part : kept)
    for (int64_t i = 0; i < part.size; ++i) {
      const uint32_t bits = magnitude(part.values.data()[i]);
      inside.data()[num_inside] = bits;
      num_inside += bits < bracket.high;
      above += bits >= bracket.high;
    }
  Rank kth;
  if (above < k) {
    kth = rank(num_inside, k - above, [](int64_t i) { return inside.data()[i]; });
  } else {
    num_inside = 0;
    for (const Kept& part : kept)
      for (int64_t i = 0; i < part.size; ++i) inside.data()[num_inside++] = magnitude(part.values.data()[i]);
    kth = rank(num_inside, k, [](int64_t i) { return inside.data()[i]; });
    above = 0;
  }
  int64_t ties = k - above - kth.above, size = 0;
  for (const Kept& part : kept) {
    const float* value = part.values.data();
    const int32_t* index = part.indices.data();
    for (int64_t i = 0; i < part.size; ++i) {
      const uint32_t bits = magnitude(value[i]);
      if (bits > kth.bits || (bits == kth.bits && ties-- > 0)) {
        values[size] = value[i];
        indices[size++] = static_cast<int32_t>(base) + index[i];
      } else if (pass.keep) {
        pass.signal[index[i]] = value[i];
      }
    }
  }
  return true;
}

inline void put_back(const std::vector<Kept>& kept, const Pass& pass) {
  if (!pass.keep) return;
  for (const Kept& part : kept)
    for (int64_t i = 0; i < part.size; ++i) pass.signal[part.indices.data()[i]] = part.values.data()[i];
}

// signal += gradient, and its k largest to the output: k values and indices, ascending, `base` added to them.
inline void top(Isa isa, const Team& team, Pass pass, int64_t n, int64_t k, int64_t base, float* values,
                int32_t* indices) {
  if (k > 0 && k < n && n > kSmall) {
    const Bracket found = bracket(pass, n, k);
    if (found.low != kNothing) {
      const int64_t parts = team.parts(n);
      std::vector<Kept>& kept = workspace(parts);
      std::vector<uint8_t> full(parts);
      pass.limit = found.low;
      team.each(parts, [&](int64_t part) {
        const int64_t begin = part_begin(n, parts, part), end = part_begin(n, parts, part + 1);
        full[part] = run(isa, pass, begin, end, kept[part], {}, found.most);
      });
      pass.grad = nullptr;
      const bool whole = std::none_of(full.begin(), full.end(), [](uint8_t is) { return is; });
      if (whole && settle(kept, pass, found, k, base, values, indices)) return;
      put_back(kept, pass);
    }
  }
  if (pass.grad) {
    pass.limit = kNothing;
    select(isa, team, pass, n);
    pass.grad = nullptr;
  }
  if (k > 0) top_by_counting(pass, n, k, base, values, indices);
}

}  // namespace sage::cpu
