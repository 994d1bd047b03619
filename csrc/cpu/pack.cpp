// Torch ops that pack codes of a few bits on the CPU.
#include "pack.h"

#include "../tensor_checks.h"

namespace sage::cpu {

Tensor pack(Tensor codes, int64_t bits) {
  const uint8_t* code = in<uint8_t>(codes, "codes", codes);
  check_bits(bits);
  Tensor bytes = empty<uint8_t>(packed_bytes(codes.numel(), bits), codes);
  pack(isa(), code, codes.numel(), static_cast<int>(bits), data<uint8_t>(bytes));
  return bytes;
}

Tensor unpack(Tensor bytes, int64_t bits, int64_t n) {
  const uint8_t* byte = in<uint8_t>(bytes, "bytes", bytes);
  check_bits(bits);
  check_packed(bytes.numel(), n, bits);
  Tensor codes = empty<uint8_t>(n, bytes);
  unpack(isa(), byte, n, static_cast<int>(bits), data<uint8_t>(codes));
  return codes;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  using torch::stable::Tensor;
  m.impl("pack", TORCH_BOX(static_cast<Tensor (*)(Tensor, int64_t)>(&sage::cpu::pack)));
  m.impl("unpack", TORCH_BOX(static_cast<Tensor (*)(Tensor, int64_t, int64_t)>(&sage::cpu::unpack)));
}
