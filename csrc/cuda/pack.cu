// Packs codes of 1 to 8 bits on a GPU without gaps: code i starts at bit i·b of the bytes, low bit first.
#include "device.cuh"

namespace sage::cuda {

namespace {

// Each thread writes one byte, from the codes that overlap it.
__global__ void pack_kernel(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes, int64_t num_bytes) {
  const int64_t byte = thread_index();
  if (byte >= num_bytes) return;
  uint32_t held = 0;
  const int64_t first = byte * 8 / bits;
  for (int64_t i = first; i < n && i * bits < byte * 8 + 8; ++i) {
    const uint32_t code = codes[i] & ((1u << bits) - 1);
    const int64_t shift = i * bits - byte * 8;
    held |= shift >= 0 ? code << shift : code >> -shift;
  }
  bytes[byte] = static_cast<uint8_t>(held);
}

__global__ void unpack_kernel(const uint8_t* bytes, int64_t num_bytes, int bits, uint8_t* codes, int64_t n) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const int64_t byte = i * bits / 8;
  uint32_t held = bytes[byte];
  if (byte + 1 < num_bytes) held |= static_cast<uint32_t>(bytes[byte + 1]) << 8;
  codes[i] = static_cast<uint8_t>(held >> (i * bits % 8) & ((1u << bits) - 1));
}

}  // namespace

void pack(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes, Stream stream) {
  const int64_t num_bytes = (n * bits + 7) / 8;
  if (n > 0) SAGE_LAUNCH(pack_kernel, blocks_of(num_bytes), stream, codes, n, bits, bytes, num_bytes);
}

void unpack(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes, Stream stream) {
  const int64_t num_bytes = (n * bits + 7) / 8;
  if (n > 0) SAGE_LAUNCH(unpack_kernel, blocks_of(n), stream, bytes, num_bytes, bits, codes, n);
}

}  // namespace sage::cuda
