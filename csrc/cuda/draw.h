// What is drawn from each group of a vector, as a table for the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sage::cuda {

// On the device.
struct Draw {
  uint64_t key;
  const int32_t *bounds, *first_block;  // of each group, and the end
  const int32_t* num;                   // elements to draw of each group; where the others are drawn, their inverted number
  const int32_t* numbers;               // of each group, on which its draws depend
  int32_t num_groups;
  bool distinct;    // whether elements that were drawn before do not count
  uint32_t* words;  // a bitmap of the vector, at first 0
  int32_t* found;   // of each round and group, at first 0
};

// On the host. Groups that miss many elements are drawn from in rounds of many blocks, before one block draws the rest.
struct DrawTable {
  std::vector<int32_t> words;
  int64_t n;
  int32_t num_groups, num_blocks = 0;
  int num_rounds = 0;
  bool inverts = false;

  // `rest` is the number of elements that one block is left with, about.
  DrawTable(const std::vector<int64_t>& bounds, const std::vector<int64_t>& counts,
            const std::vector<int64_t>& numbers, bool distinct, int64_t rest = 4096)
      : words(2 * bounds.size() + 2 * counts.size()), n(bounds.back()), num_groups(static_cast<int32_t>(counts.size())) {
    constexpr int64_t kDraws = 1024;  // of a block
    for (size_t g = 0; g < bounds.size(); ++g) {
      words[g] = static_cast<int32_t>(bounds[g]);
      words[bounds.size() + g] = num_blocks;
      if (g == counts.size()) break;
      const int64_t size = bounds[g + 1] - bounds[g], others = size - counts[g];
      const bool inverted = distinct && counts[g] > others;
      const int64_t num = inverted ? others : counts[g];
      words[2 * bounds.size() + g] = static_cast<int32_t>(inverted ? ~num : num);
      words[2 * bounds.size() + counts.size() + g] = static_cast<int32_t>(numbers[g]);
      inverts = inverts || inverted;
      if (num <= rest) continue;
      num_blocks += static_cast<int32_t>((num + kDraws - 1) / kDraws);
      // At most this part of a round's draws is in vain, on average.
      const double vain = std::min(0.5, static_cast<double>(num) / static_cast<double>(size) + static_cast<double>(size) / 0x1p32);
      int rounds = 1;
      for (double missing = vain * static_cast<double>(num); missing > static_cast<double>(std::max<int64_t>(rest, 1)); missing *= vain) ++rounds;
      num_rounds = std::max(num_rounds, rounds);
    }
  }

  // The draws, where the table is at `place`.
  Draw at(const int32_t* place, uint64_t key, bool distinct, uint32_t* bitmap, int32_t* found) const {
    const int32_t* num = place + 2 * (num_groups + 1);
    return {key, place, place + num_groups + 1, num, num + num_groups, num_groups, distinct, bitmap, found};
  }
};

}  // namespace sage::cuda
