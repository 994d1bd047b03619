// Checks of the arguments of the quantisation to integers of a table, before a kernel runs.
#pragma once

#include "tensor_checks.h"

namespace sage {

constexpr int64_t kLargestInteger = 255;
constexpr int64_t kMostIntegers = int64_t{1} << 22;  // in a sum, which is then below 2^30

inline void check_table(const std::vector<int64_t>& levels) {
  STD_TORCH_CHECK(levels.size() >= 2 && levels.front() == 0 && levels.back() <= kLargestInteger,
                  "levels: expected two or more, from 0 to at most ", kLargestInteger);
  for (size_t l = 1; l < levels.size(); ++l) STD_TORCH_CHECK(levels[l - 1] < levels[l], "levels: expected them to ascend");
}

// Checks the bounds of parts and the step of each. Whether the bounds ascend from 0 to the number of elements is not checked
// here: they may be on a GPU.
inline void check_parts(const Tensor& bounds, const Tensor& steps, const Tensor& beside) {
  check<int32_t>(bounds, "bounds", beside);
  check<float>(steps, "steps", beside);
  STD_TORCH_CHECK(bounds.numel() == steps.numel() + 1, "bounds has ", bounds.numel(), " elements: expected ",
                  steps.numel() + 1, ", one more than steps");
}

inline void check_shares(int64_t shares) {
  STD_TORCH_CHECK(shares >= 1, "shares=", shares, ": expected 1 or more");
}

// Bits of a number up to `largest`.
inline int bits_of_number(int64_t largest) {
  int bits = 1;
  while (largest >> bits) ++bits;
  return bits;
}

// Bytes of n sums of `bits` bits, of which each plane of 8 bits takes whole bytes.
inline int64_t bytes_of_sums(int64_t n, int64_t bits) {
  int64_t bytes = 0;
  for (; bits > 0; bits -= 8) bytes += (n * (bits < 8 ? bits : 8) + 7) / 8;
  return bytes;
}

// Checks rows of n packed numbers of levels; returns how many rows there are.
inline int64_t check_numbers_of_levels(const Tensor& bytes, int64_t n, int64_t bits) {
  STD_TORCH_CHECK(bytes.scalar_type() == ScalarType::Byte, "bytes has another dtype: expected uint8");
  STD_TORCH_CHECK(n >= 0 && n <= kMostElements, "n=", n, ": expected 0 to ", kMostElements);
  const int64_t num = check_rows(bytes, (n * bits + 7) / 8, "bytes", bytes);
  STD_TORCH_CHECK(num >= 1 && num <= kMostIntegers, "bytes has ", num, " rows: expected 1 to ", kMostIntegers);
  return num;
}

// Checks rows of sums of `num` integers of at most `most`, in planes of 8 bits; returns how many sums a row has.
inline int64_t check_integer_sums(const Tensor& out, const Tensor& bytes, int64_t bits, int64_t most, int64_t num) {
  STD_TORCH_CHECK(bytes.scalar_type() == ScalarType::Byte, "bytes has another dtype: expected uint8");
  STD_TORCH_CHECK(bits >= 1 && bits <= 31, "bits=", bits, ": expected 1 to 31");
  STD_TORCH_CHECK(most >= 1 && most <= kLargestInteger, "most=", most, ": expected 1 to ", kLargestInteger);
  STD_TORCH_CHECK(num >= 1 && num <= kMostIntegers, "num=", num, ": expected 1 to ", kMostIntegers);
  STD_TORCH_CHECK(bytes.dim() == 2 && bytes.size(0) >= 1, "bytes: expected a matrix of one row or more");
  const int64_t length = (out.numel() + bytes.size(0) - 1) / bytes.size(0);
  check_rows(bytes, bytes_of_sums(length, bits), "bytes", out);
  return length;
}

// Returns a new matrix of bytes.
inline Tensor byte_rows(int64_t num, int64_t num_bytes, const Tensor& beside) {
  const int64_t sizes[] = {num, num_bytes}, strides[] = {num_bytes, 1};
  return empty(2, sizes, strides, ScalarType::Byte, beside);
}

}  // namespace sage
