// Torch ops for the words of signs that other systems use, on a GPU.
#include "cut_tensor.h"

namespace sage::cuda {

namespace {

constexpr int64_t kWord = 32;  // signs of a word, which is a bucket of a cut

int64_t words_of(const std::vector<int64_t>& bounds, bool by_column) {
  if (by_column) return (bounds.back() + kWord - 1) / kWord;
  int64_t num = 0;
  for (size_t g = 0; g + 1 < bounds.size(); ++g) num += (bounds[g + 1] - bounds[g] + kWord - 1) / kWord;
  return num;
}

}  // namespace

Tensor sign_words_op(Tensor bytes, std::vector<int64_t> bounds, bool by_column) {
  const int64_t n = bounds.empty() ? 0 : bounds.back();
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  check_bounds(bounds, n);
  check_packed(bytes.numel(), n, 1);
  const OnDevice here(bytes);
  Tensor words = empty<int32_t>(words_of(bounds, by_column), bytes);
  uint32_t* word = reinterpret_cast<uint32_t*>(data<int32_t>(words));
  if (by_column) {
    sign_words_by_column(byte, n, word, here.stream());
  } else {
    const DeviceCut on(bounds, kWord, bytes, here.stream());
    sign_words(on.cut, byte, n, word, here.stream());
  }
  return words;
}

Tensor sign_bytes_op(Tensor words, std::vector<int64_t> bounds, bool by_column) {
  const int64_t n = bounds.empty() ? 0 : bounds.back(), num_bytes = (n + 7) / 8;
  check_bounds(bounds, n);
  const int64_t num_rows = check_rows(words, words_of(bounds, by_column), "words", words);
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int, "words has another dtype: expected int32");
  STD_TORCH_CHECK(n <= kMostElements, "bounds: at most ", kMostElements, " elements can be indexed by int32");
  const OnDevice here(words);
  const int64_t sizes[2] = {num_rows, num_bytes}, strides[2] = {num_bytes, 1};
  Tensor bytes = empty(2, sizes, strides, ScalarType::Byte, words);
  const uint32_t* word = static_cast<const uint32_t*>(words.const_data_ptr());
  uint8_t* byte = static_cast<uint8_t*>(bytes.mutable_data_ptr());
  if (by_column) {
    sign_bytes_by_column(word, n, num_rows, byte, here.stream());
  } else {
    const DeviceCut on(bounds, kWord, words, here.stream());
    sign_bytes(on.cut, word, n, num_rows, byte, here.stream());
  }
  return bytes;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("sign_words", TORCH_BOX(&sage::cuda::sign_words_op));
  m.impl("sign_bytes", TORCH_BOX(&sage::cuda::sign_bytes_op));
}
