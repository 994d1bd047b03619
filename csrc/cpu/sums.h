// Sums and maxima over groups of a vector, in one pass that also adds the gradient.
//
// The order of the additions is fixed, so that every thread count, instruction set and device gives the same bits: a
// group is cut into chunks of 1,024 elements from its beginning. In a chunk, lane l of 32 adds elements l, l + 32,
// l + 64, … in float64; the lanes are added by halves (l + 16, l + 8, …); and the chunks pairwise, with doubling stride.
#pragma once

#include <vector>

#include "base.h"

namespace sage::cpu {

constexpr int64_t kChunk = 1024;

enum class Kind : int { absolute, sides, squares, largest };

struct Statistic {
  double sum = 0;        // of |a| (absolute), of the negative a (sides), or of a² (squares)
  double other = 0;      // of the a that are not negative, NaN among them (sides)
  uint32_t largest = 0;  // magnitude (squares, largest)
  int64_t below = 0;     // number of negative elements (sides)
};

inline void merge(Statistic& into, const Statistic& other) {
  into.sum += other.sum;
  into.other += other.other;
  into.largest = std::max(into.largest, other.largest);
  into.below += other.below;
}

// Adds a group's chunks, which it overwrites: neighbours first, then those two apart, and so on.
inline Statistic merged(Statistic* chunks, int64_t num) {
  for (int64_t stride = 1; stride < num; stride *= 2)
    for (int64_t i = 0; i + stride < num; i += 2 * stride) merge(chunks[i], chunks[i + stride]);
  return num > 0 ? chunks[0] : Statistic{};
}

}  // namespace sage::cpu

#define SAGE_KERNEL "sums_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// signal += grad, where there is a gradient, and the statistics of each group [bounds_g, bounds_{g+1}) of the signal.
inline std::vector<Statistic> statistics(Isa isa, const Team& team, Kind kind, float* signal, const float* grad,
                                         const std::vector<int64_t>& bounds) {
  const size_t num_groups = bounds.size() - 1;
  std::vector<int64_t> first(num_groups + 1);  // chunk of each group
  for (size_t g = 0; g < num_groups; ++g) first[g + 1] = first[g] + (bounds[g + 1] - bounds[g] + kChunk - 1) / kChunk;
  const int64_t num_chunks = first.back();
  std::vector<Statistic> chunks(num_chunks);
  const int64_t parts = std::min(team.parts(bounds.back()), std::max<int64_t>(1, num_chunks));
  team.each(parts, [&](int64_t part) {
    int64_t chunk = num_chunks * part / parts;
    const int64_t end = num_chunks * (part + 1) / parts;
    size_t g = std::upper_bound(first.begin(), first.end(), chunk) - first.begin() - 1;
    for (; chunk < end; ++chunk) {
      while (first[g + 1] <= chunk) ++g;
      const int64_t begin = bounds[g] + (chunk - first[g]) * kChunk;
      chunks[chunk] = SAGE_CHOOSE(isa, of_chunk, kind, signal + begin, grad ? grad + begin : nullptr,
                                  std::min(kChunk, bounds[g + 1] - begin));
    }
  });
  std::vector<Statistic> found(num_groups);
  for (size_t g = 0; g < num_groups; ++g) found[g] = merged(chunks.data() + first[g], first[g + 1] - first[g]);
  return found;
}

}  // namespace sage::cpu
