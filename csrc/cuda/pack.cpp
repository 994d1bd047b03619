// Torch ops that pack codes of a few bits on a GPU.
#include "stream.h"

namespace sage::cuda {

Tensor pack_codes(Tensor codes, int64_t bits) {
  const uint8_t* code = in<uint8_t>(codes, "codes", codes);
  check_bits(bits);
  const OnDevice here(codes);
  Tensor bytes = empty<uint8_t>((codes.numel() * bits + 7) / 8, codes);
  pack(code, codes.numel(), static_cast<int>(bits), data<uint8_t>(bytes), here.stream());
  return bytes;
}

Tensor unpack_codes(Tensor bytes, int64_t bits, int64_t n) {
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  check_bits(bits);
  check_packed(bytes.numel(), n, bits);
  const OnDevice here(bytes);
  Tensor codes = empty<uint8_t>(n, bytes);
  unpack(byte, n, static_cast<int>(bits), data<uint8_t>(codes), here.stream());
  return codes;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("pack", TORCH_BOX(&sage::cuda::pack_codes));
  m.impl("unpack", TORCH_BOX(&sage::cuda::unpack_codes));
}
