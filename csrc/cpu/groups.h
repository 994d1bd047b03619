// Numbers of which each group of a vector has one, such as scales, for sixteen consecutive elements at a time.
#pragma once

#include <vector>

#include "base.h"

namespace sage::cpu {

// The group of an element, found again as the position moves forward. Group g is [bounds_g, bounds_{g+1}).
class Cursor {
 public:
  Cursor(const int64_t* bounds, int64_t num_groups, int64_t begin) : bounds_(bounds) {
    group_ = std::upper_bound(bounds, bounds + num_groups + 1, begin) - bounds - 1;
  }

  // Moves to element i, which must not be before the last one; returns its group.
  int64_t group_at(int64_t i) {
    while (bounds_[group_ + 1] <= i) ++group_;
    return group_;
  }

  // The element behind the group of the last position.
  int64_t stop() const { return bounds_[group_ + 1]; }

  // Whether [i, i + num) is within the group of i, at which the cursor is.
  bool is_whole(int64_t i, int64_t num = 16) const { return i + num <= bounds_[group_ + 1]; }

 private:
  const int64_t* bounds_;
  int64_t group_;
};

// The bounds of the buckets that groups are divided into. Every group begins a new bucket, its last one being shorter;
// a bucket of 0 elements stands for whole groups.
inline std::vector<int64_t> bucket_bounds(const std::vector<int64_t>& bounds, int64_t bucket) {
  if (bucket == 0) return bounds;
  std::vector<int64_t> found{0};
  found.reserve(bounds.back() / bucket + bounds.size());
  for (size_t g = 0; g + 1 < bounds.size(); ++g)
    for (int64_t begin = bounds[g]; begin < bounds[g + 1]; begin += bucket)
      found.push_back(std::min(begin + bucket, bounds[g + 1]));
  return found;
}

// The first block of each group, and the number of all.
inline std::vector<int64_t> first_blocks(const std::vector<int64_t>& bounds, int64_t block) {
  std::vector<int64_t> firsts{0};
  firsts.reserve(bounds.size());
  for (size_t g = 0; g + 1 < bounds.size(); ++g)
    firsts.push_back(firsts[g] + (bounds[g + 1] - bounds[g] + block - 1) / block);
  return firsts;
}

}  // namespace sage::cpu
