// Torch ops for index coding on the CPU.
#include "code.h"

#include "../code_checks.h"

namespace sage::cpu {

Tensor encode_gaps(Tensor indices) {
  const int32_t* at = in<int32_t>(indices, "indices", indices);
  const int64_t num_bytes = gap_bytes(at, indices.numel());
  STD_TORCH_CHECK(num_bytes >= 0, "indices: expected each to be above the one before it, and none below 0");
  Tensor bytes = empty<uint8_t>(num_bytes, indices);
  encode_gaps(at, indices.numel(), data<uint8_t>(bytes));
  return bytes;
}

Tensor decode_gaps(Tensor bytes, int64_t num) {
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  check_gaps(bytes.numel(), num);
  Tensor indices = empty<int32_t>(num, bytes);
  STD_TORCH_CHECK(decode_gaps(byte, bytes.numel(), num, data<int32_t>(indices)), "bytes: not those of ", num, " gaps");
  return indices;
}

Tensor encode_bitmap(Tensor indices, int64_t n) {
  const int32_t* at = in<int32_t>(indices, "indices", indices);
  check_bitmap(n);
  Tensor bytes = empty<uint8_t>((n + 7) / 8, indices);
  STD_TORCH_CHECK(encode_bitmap(at, indices.numel(), n, data<uint8_t>(bytes)),
                  "indices: expected all from 0 up to ", n - 1);
  return bytes;
}

Tensor decode_bitmap(Tensor bytes) {
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  check_bitmap_bytes(bytes.numel());
  Tensor indices = empty<int32_t>(count_bits(byte, bytes.numel()), bytes);
  decode_bitmap(byte, bytes.numel(), data<int32_t>(indices));
  return indices;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  using torch::stable::Tensor;
  m.impl("encode_gaps", TORCH_BOX(static_cast<Tensor (*)(Tensor)>(&sage::cpu::encode_gaps)));
  m.impl("decode_gaps", TORCH_BOX(static_cast<Tensor (*)(Tensor, int64_t)>(&sage::cpu::decode_gaps)));
  m.impl("encode_bitmap", TORCH_BOX(static_cast<Tensor (*)(Tensor, int64_t)>(&sage::cpu::encode_bitmap)));
  m.impl("decode_bitmap", TORCH_BOX(static_cast<Tensor (*)(Tensor)>(&sage::cpu::decode_bitmap)));
}
