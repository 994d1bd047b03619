// The groups of a vector cut into tiles, as a table for the device, and the search for a magnitude by rank in each group.
#pragma once

#include "kernels.h"

namespace sage::cuda {

// On the device. Group g is [bounds_g, bounds_{g+1}). Its tiles begin at multiples of 4 of the vector, so that the first and
// the last may also hold elements of other groups.
struct Segments {
  const int32_t *bounds, *first_tile;  // of each group, and the end
  const int32_t* wanted;               // as given
  int32_t num, num_tiles;
};

// On the host, where the table is computed.
struct SegmentTable {
  std::vector<int32_t> words;
  int32_t num, num_tiles = 0;

  // `align` is a power of two: elements between two places where a tile may begin.
  SegmentTable(const std::vector<int64_t>& bounds, const std::vector<int64_t>& wanted, int64_t align = 4)
      : words(2 * bounds.size() + wanted.size()), num(static_cast<int32_t>(bounds.size()) - 1) {
    for (size_t g = 0; g < bounds.size(); ++g) {
      words[g] = static_cast<int32_t>(bounds[g]);
      words[bounds.size() + g] = num_tiles;
      if (g + 1 < bounds.size() && bounds[g] < bounds[g + 1])
        num_tiles += static_cast<int32_t>(tiles(bounds[g + 1] - bounds[g] / align * align));
    }
    for (size_t i = 0; i < wanted.size(); ++i) words[2 * bounds.size() + i] = static_cast<int32_t>(wanted[i]);
  }

  // The segments, whose table is at `place`.
  Segments at(const int32_t* place) const {
    return {place, place + num + 1, place + 2 * (num + 1), num, num_tiles};
  }
};

// The state of the search for the magnitude of one rank in one group, in device memory. `counts` belong to the current digit
// and are 0 between the passes.
constexpr int kDigits = 2048;
struct Search {
  uint32_t bits;  // of the magnitude, as far as they are found; at the end kNothing if the rank is 0
  uint32_t left;  // of what has those bits, which by rank it is (from 1); at the end: how many equal ones reach the rank
  uint32_t done;  // tiles that are counted
  uint32_t unused;
  uint32_t counts[kDigits];
};
constexpr uint32_t kNothing = 0x80000000u;  // above every magnitude

// Finds `each` ranks, from 1, in each group of a signal: `wanted` has each · num of them, those of a group in succession,
// and so has `searches`. `sums` has `num_sums` words, which are set to 0. Adds the pass's gradient first, where there is
// one; then each is 1. Four launches.
void search(const Segments& cut, const Pass& pass, int32_t each, Search* searches, unsigned long long* sums,
            int64_t num_sums, Stream stream);

// Computes signal += gradient, and writes the largest of each group to the output, wanted_{g+1} - wanted_g of group g.
// `sums` has a word for each tile, and one more. Five launches for every number of groups.
void top(const Segments& cut, const Pass& pass, Search* searches, unsigned long long* sums, float* values,
         int32_t* indices, Stream stream);

// Computes signal += gradient, and writes the elements whose magnitude is at or above the limit of their group, whose bits
// `wanted` has; adds the numbers of them to the counts, where there are counts. `sums` has a word for each tile, and one more, all
// 0 before; behind it, the word of the last tile has the number of all. The output has room for all elements. One launch.
void select(const Segments& cut, const Pass& pass, unsigned long long* counts, unsigned long long* sums, float* values,
            int32_t* indices, Stream stream);

}  // namespace sage::cuda
