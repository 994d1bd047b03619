// Moments and order statistics of the groups of a vector on a GPU, and of random samples of them; as cpu/moments.h and
// cpu/sampled.h.
#pragma once

#include "segments.h"

namespace sage::cuda {

struct Moments {
  double sum, absolute, square;  // of x, |x| and x²
  uint32_t most, nonzero;        // the largest magnitude, and how many are not 0
};

// Computes signal += grad, where there is a gradient, and five rows of each group: sum, absolute, square, nonzero, most.
// `pieces` has room for twice the pieces of the cut. Two launches.
void moments(const Cut& cut, float* signal, const float* grad, Moments* pieces, double* rows, Stream stream);

// Writes the magnitudes that searches have found.
void found(const Search* searches, int64_t num, float* magnitudes, Stream stream);

// Writes the magnitudes at or above the limit of their group, whose bits `wanted` has, and adds the numbers of them to the
// counts. `sums` has a word for each tile, and one more, all 0 before; behind it, the word of the last tile has the number of
// all. `magnitudes` has room for all elements.
void take_above(const Segments& cut, const float* signal, float* magnitudes, unsigned long long* counts,
                unsigned long long* sums, Stream stream);

// What the magnitudes of a list exceed the smallest of them by, in memory of the device: all bits are 1 before.
struct Excess {
  int32_t bounds[2], first_bucket[2], first_piece[2];  // the list of those left, as one group of a cut
  uint32_t least;
};

// Moves the magnitudes of a list that are at or above a limit to its front, and writes how many there are, the smallest, and
// the sum and the sum of squares of what they exceed it by. `sums` has a word for each tile, and one more, all 0 before;
// `pieces` has room for twice the pieces of the list. Three launches.
void excess(float* list, int64_t n, uint32_t limit, Excess* state, Moments* pieces, unsigned long long* sums, double* out,
            Stream stream);

// Writes the magnitudes of one element of each run: the groups of `cut` are those of the sample, and `wanted` has their
// ranks, then the bounds of the vector's groups. A group is cut into as many runs as its sample has elements, and element
// floor(draw · length / 65536) of a run is taken; of a draw, the low 16 bits are used.
void sample(const Segments& cut, int64_t num, const float* signal, const float* grad, const int32_t* draws,
            float* magnitudes, Stream stream);

}  // namespace sage::cuda
