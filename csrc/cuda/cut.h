// How a vector is cut into groups, and groups into buckets, as a table for the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sage::cuda {

constexpr int64_t kChunk = 1024;           // elements that are added by themselves, as on the CPU
constexpr int64_t kPiece = 8 * kChunk;     // elements of a bucket that one block adds

// On the device. Group g is [bounds_g, bounds_{g+1}); each begins a new bucket, and each bucket a new piece.
struct Cut {
  const int32_t *bounds, *first_bucket, *first_piece;  // of each group, and the end
  int32_t num_groups, num_buckets, num_pieces;
  int32_t bucket;  // elements, or 0: a group is one bucket
};

// On the device. The elements from starts_r up to starts_{r+1} have consecutive positions, on which their random bits
// depend; the first of them is high_r · 2^32 + low_r.
struct Positions {
  const int32_t *starts, *low, *high;
  int32_t num_runs;
};

// On the host, where the table is computed. Only vectors with random bits need positions.
struct CutTable {
  std::vector<int32_t> words;
  int32_t num_groups, num_buckets = 0, num_pieces = 0, bucket, num_runs;
  int64_t longest = 0;  // elements of the largest bucket

  CutTable(const std::vector<int64_t>& bounds, int64_t elements, const std::vector<int64_t>& starts = {},
           const std::vector<int64_t>& firsts = {})
      : words(3 * bounds.size()),
        num_groups(static_cast<int32_t>(bounds.size()) - 1),
        // A bucket of all elements that int32 can index is a whole group.
        bucket(static_cast<int32_t>(std::min<int64_t>(elements, INT32_MAX))),
        num_runs(static_cast<int32_t>(starts.size())) {
    for (size_t g = 0; g < bounds.size(); ++g) {
      words[g] = static_cast<int32_t>(bounds[g]);
      words[bounds.size() + g] = num_buckets;
      words[2 * bounds.size() + g] = num_pieces;
      if (g + 1 == bounds.size()) break;
      const int64_t n = bounds[g + 1] - bounds[g], num = bucket ? (n + bucket - 1) / bucket : 1;
      longest = std::max(longest, bucket ? std::min<int64_t>(n, bucket) : n);
      num_buckets += static_cast<int32_t>(num);
      num_pieces += static_cast<int32_t>(bucket ? num * ((bucket + kPiece - 1) / kPiece) : (n + kPiece - 1) / kPiece);
    }
    for (int64_t start : starts) words.push_back(static_cast<int32_t>(start));
    for (int64_t first : firsts) words.push_back(static_cast<int32_t>(static_cast<uint32_t>(first)));
    for (int64_t first : firsts) words.push_back(static_cast<int32_t>(first >> 32));
  }

  // The cut, whose table is at `place`.
  Cut at(const int32_t* place) const {
    return {place, place + num_groups + 1, place + 2 * (num_groups + 1), num_groups, num_buckets, num_pieces, bucket};
  }

  Positions positions_at(const int32_t* place) const {
    const int32_t* starts = place + 3 * (num_groups + 1);
    return {starts, starts + num_runs, starts + 2 * num_runs, num_runs};
  }
};

}  // namespace sage::cuda
