// The union of lists of indices, and membership in a list: through a bitmap of the vector, so that nothing is sorted.
#pragma once

#include <bit>

#include "base.h"

namespace sage::cpu {

class Bitmap {
 public:
  explicit Bitmap(int64_t n) : num_words_((n + 63) / 64) {
    words().reserve(num_words_);
    std::fill_n(words().data(), num_words_, uint64_t{0});
  }

  void set(const int32_t* at, int64_t num) {
    for (int64_t i = 0; i < num; ++i) words().data()[at[i] >> 6] |= uint64_t{1} << (at[i] & 63);
  }

  bool has(int32_t at) const { return words().data()[at >> 6] >> (at & 63) & 1; }

  // Returns how many bits are set; writes how many are set before each word.
  int64_t count(Buffer<int32_t>& before) const {
    before.reserve(num_words_);
    int64_t sum = 0;
    for (int64_t word = 0; word < num_words_; ++word) {
      before.data()[word] = static_cast<int32_t>(sum);
      sum += std::popcount(words().data()[word]);
    }
    return sum;
  }

  // Writes the indices of all set bits in ascending order.
  void indices(int32_t* out) const {
    for (int64_t word = 0; word < num_words_; ++word)
      for (uint64_t left = words().data()[word]; left; left &= left - 1)
        *out++ = static_cast<int32_t>(64 * word + std::countr_zero(left));
  }

  // Writes the position of each index among the set bits.
  void places(const Buffer<int32_t>& before, const int32_t* at, int64_t num, int32_t* out) const {
    for (int64_t i = 0; i < num; ++i) {
      const uint64_t lower = words().data()[at[i] >> 6] & ((uint64_t{1} << (at[i] & 63)) - 1);
      out[i] = before.data()[at[i] >> 6] + std::popcount(lower);
    }
  }

 private:
  static Buffer<uint64_t>& words() {
    static thread_local Buffer<uint64_t> kept;
    return kept;
  }

  int64_t num_words_;
};

}  // namespace sage::cpu
