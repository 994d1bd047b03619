// Torch ops for index coding on a GPU. The host waits once in each, but not in encode_bitmap: for the number of bytes or
// indices, and for whether the gaps are right. A bitmap's indices are not checked: those outside of the vector are not set.
#include "stream.h"  // first: it chooses what a stream is

#include "../code_checks.h"
#include "code.h"

namespace sage::cuda {

namespace {

constexpr int64_t kTotalWords = sizeof(GapTotals) / sizeof(unsigned long long);

// The words of look-back, and the totals behind them.
struct GapSums {
  Tensor memory;
  unsigned long long* sums;
  GapTotals* totals;

  GapSums(int64_t num, const Tensor& beside, Stream stream)
      : memory(zeros<int64_t>(num + kTotalWords, beside, stream)),
        sums(static_cast<unsigned long long*>(memory.mutable_data_ptr())),
        totals(reinterpret_cast<GapTotals*>(sums + num)) {}

  GapTotals wait(Stream stream) const {
    GapTotals found;
    copy_to_host(&found, totals, sizeof found, stream);
    return found;
  }
};

}  // namespace

Tensor encode_gaps(Tensor indices) {
  const int32_t* at = in<int32_t>(indices, "indices", indices);
  const int64_t num = indices.numel();
  const OnDevice here(indices);
  const GapSums on(tiles(num) + 1, indices, here.stream());
  const Tensor staged = empty<uint8_t>(most_gap_bytes(num), indices);
  encode_gaps(at, num, data<uint8_t>(staged), on.sums, on.totals, here.stream());
  const GapTotals found = on.wait(here.stream());
  STD_TORCH_CHECK(found.wrong == 0, "indices: expected each to be above the one before it, and none below 0");
  return copied<uint8_t>(staged, static_cast<int64_t>(found.bytes), here.stream());
}

Tensor decode_gaps(Tensor bytes, int64_t num) {
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  const int64_t num_bytes = bytes.numel();
  check_gaps(num_bytes, num);
  const OnDevice here(bytes);
  const GapSums on(2 * tiles(num_bytes) + 1, bytes, here.stream());
  Tensor indices = empty<int32_t>(num, bytes);
  decode_gaps(byte, num_bytes, num, data<int32_t>(indices), on.sums, on.totals, here.stream());
  STD_TORCH_CHECK(on.wait(here.stream()).wrong == 0, "bytes: not those of ", num, " gaps");
  return indices;
}

Tensor encode_bitmap(Tensor indices, int64_t n) {
  const int32_t* at = in<int32_t>(indices, "indices", indices);
  check_bitmap(n);
  const int64_t num_bytes = (n + 7) / 8, num_words = (num_bytes + 15) / 16 * 4;
  const OnDevice here(indices);
  const Tensor memory = empty<uint8_t>(4 * num_words, indices);
  auto* words = static_cast<uint32_t*>(memory.mutable_data_ptr());
  zero(words, num_words, here.stream());
  set_bits({words, n, nullptr, nullptr}, at, indices.numel(), here.stream());
  return front(memory, num_bytes);
}

Tensor decode_bitmap(Tensor bytes) {
  check<uint8_t>(bytes, "bytes", bytes);
  const int64_t num_bytes = bytes.numel(), n = 8 * num_bytes, num_words = bitmap_words(n);
  check_bitmap_bytes(num_bytes);
  const OnDevice here(bytes);
  const Tensor memory = empty<uint8_t>(4 * num_words, bytes), counts = empty<int32_t>(bit_tiles(n) + 1, bytes);
  uint8_t* copy = data<uint8_t>(memory);
  if (num_bytes > 0) {
    STD_CUDA_CHECK(cudaMemcpyAsync(copy, bytes.const_data_ptr(), num_bytes, cudaMemcpyDeviceToDevice, here.stream()));
    STD_CUDA_CHECK(cudaMemsetAsync(copy + num_bytes, 0, 4 * num_words - num_bytes, here.stream()));
  }
  const Bitmap bits{static_cast<uint32_t*>(memory.mutable_data_ptr()), n, nullptr, data<int32_t>(counts)};
  count_bits(bits, here.stream());
  uint32_t num = 0;
  copy_to_host(&num, bits.counts + bit_tiles(n), sizeof num, here.stream());
  Tensor indices = empty<int32_t>(num, bytes);
  list_bits(bits, data<int32_t>(indices), here.stream());
  return indices;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  using torch::stable::Tensor;
  m.impl("encode_gaps", TORCH_BOX(static_cast<Tensor (*)(Tensor)>(&sage::cuda::encode_gaps)));
  m.impl("decode_gaps", TORCH_BOX(static_cast<Tensor (*)(Tensor, int64_t)>(&sage::cuda::decode_gaps)));
  m.impl("encode_bitmap", TORCH_BOX(&sage::cuda::encode_bitmap));
  m.impl("decode_bitmap", TORCH_BOX(&sage::cuda::decode_bitmap));
}
