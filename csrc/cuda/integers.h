// The quantisation to integers of a table on a GPU: what its kernels are given. As in cpu/integers.h.
#pragma once

#include <cstdint>
#include <vector>

namespace sage::cuda {

// By the integer below a place, up to most - 1, the number of the level below it; and the integer of each number.
struct IntegerTable {
  int most = 1, bits = 1;
  uint8_t below[256] = {}, levels[256] = {};

  explicit IntegerTable(const std::vector<int64_t>& from) : most(static_cast<int>(from.back())) {
    while ((from.size() - 1) >> bits) ++bits;
    for (size_t l = 0; l < from.size(); ++l) levels[l] = static_cast<uint8_t>(from[l]);
    for (int place = 0, l = 0; place < most; ++place) {
      while (from[l + 1] <= place) ++l;
      below[place] = static_cast<uint8_t>(l);
    }
  }
};

// On the device. Part p is [bounds_p, bounds_{p+1}).
struct Parts {
  const int32_t* bounds;
  const float* steps;
  int32_t num;
};

// A row of num_bytes bytes for each share of `length` elements.
struct IntegerRows {
  float* signal;
  int64_t n;
  Parts parts;
  uint64_t key;         // of the random bits
  Positions positions;  // of the elements, for their random bits
  bool packed;          // whether numbers of levels are written, packed, or integers, a byte each
  bool keep;            // whether the error is left in the signal
  int64_t length;
  uint8_t* bytes;
  int64_t num_bytes;
};

// The sums of rows of n packed numbers of levels, in planes of 8 bits.
struct IntegerSums {
  const uint8_t* bytes;
  int64_t num_bytes, num_rows, n;
  int bits;  // of a sum
  uint8_t* out;
};

// The values of sums of `num` integers of at most `most`. A row has `length` sums.
struct IntegerMeans {
  float* out;
  int64_t n;
  const uint8_t* bytes;
  int64_t num_bytes, length;
  int bits;
  Parts parts;
  int64_t most, num;
};

}  // namespace sage::cuda
