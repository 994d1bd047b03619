// The table of a cut and of positions on the device, and the memory of the statistics.
#pragma once

#include "stream.h"

namespace sage::cuda {

class DeviceCut {
 public:
  DeviceCut(const std::vector<int64_t>& bounds, int64_t bucket, const Tensor& beside, Stream stream,
            const std::vector<int64_t>& starts = {}, const std::vector<int64_t>& firsts = {})
      : table_(bounds, bucket, starts, firsts),
        words_(empty<int32_t>(static_cast<int64_t>(table_.words.size()), beside)) {
    upload(table_.words, data<int32_t>(words_), stream);
    cut = table_.at(data<int32_t>(words_));
    positions = table_.positions_at(data<int32_t>(words_));
  }

  // Memory for the statistics of the pieces, twice.
  Tensor pieces() const {
    return empty<uint8_t>(2 * static_cast<int64_t>(sizeof(Statistic)) * table_.num_pieces, words_);
  }

  // Elements of the largest bucket.
  int64_t longest() const { return table_.longest; }

  Cut cut;
  Positions positions;

 private:
  CutTable table_;
  Tensor words_;
};

}  // namespace sage::cuda
