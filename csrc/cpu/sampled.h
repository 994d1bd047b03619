// The r-th largest magnitude of a random sample of a vector, without the sample's indices.
#pragma once

#include "topk.h"

namespace sage::cpu {

// The sample is one element of each of `num` runs of consecutive elements, whose lengths differ by one at most.
// Element floor(draw · length / 65536) of a run is taken, where the draws have 16 random bits. Element i is
// signal + gradient, if there is one.
inline uint32_t sampled(const float* signal, const float* grad, int64_t n, int64_t num, const int32_t* draws,
                        int64_t r) {
  constexpr int64_t kBatch = 64;
  static thread_local Buffer<uint32_t> buffer;
  buffer.reserve(num);
  uint32_t* seen = buffer.data();
  int64_t at[kBatch], begin = 0, rest = 0;
  const int64_t length = n / num, over = n % num;
  const auto read = [=, &at](int64_t i) {
    const int64_t place = at[i % kBatch];
    seen[i] = magnitude(grad ? signal[place] + grad[place] : signal[place]);
  };
  // The elements are far apart, so each is prefetched long before it is read.
  for (int64_t i = 0; i < num; ++i) {
    if (i >= kBatch) read(i - kBatch);
    rest += over;
    const bool longer = rest >= num;
    if (longer) rest -= num;
    at[i % kBatch] = begin + (draws[i] * (length + longer) >> 16);
    begin += length + longer;
    __builtin_prefetch(signal + at[i % kBatch]);
    if (grad) __builtin_prefetch(grad + at[i % kBatch]);
  }
  for (int64_t i = std::max<int64_t>(0, num - kBatch); i < num; ++i) read(i);
  return rank(num, r, 31, [seen](int64_t i) { return seen[i]; }).bits;
}

}  // namespace sage::cpu
