// The table of segments on the device, and the memory of searches in them.
#pragma once

#include "stream.h"  // first: it chooses what a stream is

#include "segments.h"

namespace sage::cuda {

class DeviceSegments {
 public:
  DeviceSegments(const std::vector<int64_t>& bounds, const std::vector<int64_t>& wanted, const Tensor& beside,
                 Stream stream, int64_t align = 4)
      : table_(bounds, wanted, align), words_(empty<int32_t>(static_cast<int64_t>(table_.words.size()), beside)) {
    upload(table_.words, data<int32_t>(words_), stream);
    cut = table_.at(data<int32_t>(words_));
  }

  // Memory for the search of `each` ranks in each group.
  Tensor searches(int64_t each) const {
    return empty<uint8_t>(static_cast<int64_t>(sizeof(Search)) * each * table_.num, words_);
  }

  // A word of 64 bits for each tile, and `more`.
  Tensor sums(int64_t more = 1) const { return empty<int64_t>(table_.num_tiles + more, words_); }

  Segments cut;

 private:
  SegmentTable table_;
  Tensor words_;
};

}  // namespace sage::cuda
