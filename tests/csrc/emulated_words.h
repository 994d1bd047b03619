// The CUDA kernels of the words of signs against the CPU's. Include it behind the kernels of the GPU and emulated_groups.h.
#pragma once

#include "../../csrc/cpu/words.h"

// Bytes of n bits, of which those beyond the end are 0, as `sign_bits` writes them.
inline std::vector<uint8_t> draw_bits(int64_t n) {
  std::vector<uint8_t> bytes((n + 7) / 8);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(below(256));
  if (n % 8) bytes.back() &= static_cast<uint8_t>((1 << n % 8) - 1);
  return bytes;
}

inline int64_t words_of_groups(const std::vector<int64_t>& bounds) {
  int64_t num = 0;
  for (size_t g = 0; g + 1 < bounds.size(); ++g) num += sage::cpu::num_words(bounds[g + 1] - bounds[g]);
  return num;
}

inline void test_words(int64_t n, const std::vector<int64_t>& bounds, int64_t shift) {
  const int64_t num_bytes = (n + 7) / 8, payloads = below(4);
  const OnDevice on(bounds, 32);
  for (const bool by_column : {false, true}) {
    const std::string name = by_column ? "words by column" : "words by group";
    const int64_t num = by_column ? sage::cpu::num_words(n) : words_of_groups(bounds);
    const std::vector<uint8_t> bytes = draw_bits(n);
    std::vector<uint32_t> words(num, 12345), expected(num);
    if (by_column) {
      sage::cuda::sign_words_by_column(bytes.data(), n, words.data(), nullptr);
      sage::cpu::words_by_column(bytes.data(), n, expected.data());
    } else {
      sage::cuda::sign_words(on.cut, bytes.data(), n, words.data(), nullptr);
      sage::cpu::words_by_group(bytes.data(), bounds, expected.data());
    }
    expect(words == expected, name);
    std::vector<uint32_t> rows(payloads * num);  // also with bits set beyond the ends
    for (uint32_t& word : rows) word = static_cast<uint32_t>(generator());
    std::vector<uint8_t> back(payloads * num_bytes + shift, 0xa5), back_expected(payloads * num_bytes + shift, 0);
    std::fill_n(back_expected.begin(), shift, uint8_t{0xa5});
    if (by_column)
      sage::cuda::sign_bytes_by_column(rows.data(), n, payloads, back.data() + shift, nullptr);
    else
      sage::cuda::sign_bytes(on.cut, rows.data(), n, payloads, back.data() + shift, nullptr);
    for (int64_t row = 0; row < payloads; ++row) {
      uint8_t* at = back_expected.data() + shift + row * num_bytes;
      if (by_column)
        sage::cpu::bits_by_column(rows.data() + row * num, n, at);
      else
        sage::cpu::bits_by_group(rows.data() + row * num, bounds, at);
    }
    expect(back == back_expected, name + ": bits");
  }
}

inline void test_words(int64_t n) {
  test_words(n, draw_bounds(n), below(4));
  const int64_t small = below(1200);  // fewer than 32 words, where a row by column is short
  test_words(small, draw_bounds(small), below(4));
}
