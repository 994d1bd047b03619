// Quantisation to integers of a table on a GPU, sums of such integers and their values, with the bits of
// cpu/integers_kernel.h. A thread has eight elements, whose codes are whole bytes.
#include "random_tile.cuh"

namespace sage::cuda {

namespace {

constexpr int kEights = kItems / 8;  // of a thread

__device__ __forceinline__ int width_of(int bits, int plane) { return bits - 8 * plane < 8 ? bits - 8 * plane : 8; }

// Eight codes of `bits` bits from byte `at` on; 0 beyond the bytes.
__device__ __forceinline__ uint64_t load_eight(const uint8_t* bytes, int64_t at, int bits, int64_t num_bytes) {
  uint64_t held = 0;
  for (int k = 0; k < bits; ++k)
    if (at + k < num_bytes) held |= static_cast<uint64_t>(bytes[at + k]) << (8 * k);
  return held;
}

__device__ __forceinline__ void store_eight(uint64_t held, uint8_t* bytes, int64_t at, int bits, int64_t num_bytes) {
  for (int k = 0; k < bits; ++k)
    if (at + k < num_bytes) bytes[at + k] = static_cast<uint8_t>(held >> (8 * k));
}

// Each block quantises a tile of a share.
__global__ void quantise_integers_kernel(IntegerTable table, IntegerRows x) {
  __shared__ uint16_t random[kTile];
  const int64_t tiles_each = tiles_of(x.length), share = blockIdx.x / tiles_each;
  const int64_t tile = (blockIdx.x - share * tiles_each) * kTile, first = share * x.length + tile;
  const int64_t left = x.length - tile < x.n - first ? x.length - tile : x.n - first;
  const int n = static_cast<int>(left < 0 ? 0 : left < kTile ? left : kTile), bits = x.packed ? table.bits : 8;
  int32_t low = 0, high = 0;
  if (n > 0) {
    draw_tile(x.key, x.positions, first, first + n, random);
    low = group_of(x.parts.bounds, 0, x.parts.num - 1, first);
    high = group_of(x.parts.bounds, low, x.parts.num - 1, first + n - 1);
  }
  const float most = static_cast<float>(table.most), half = most / 2;
  for (int c = 0; c < kEights; ++c) {
    const int at = 8 * (c * kThreads + static_cast<int>(threadIdx.x));
    if (tile + at >= x.length) continue;
    uint64_t held = 0;
    for (int j = 0; j < 8 && at + j < n; ++j) {
      const int64_t i = first + at + j;
      const float step = x.parts.steps[group_of(x.parts.bounds, low, high, i)], a = x.signal[i];
      float place = a / step;
      if (magnitude(place) > 0x7f800000u) place = 0;
      place = place + half;
      place = place < most ? place : most;
      place = place < 0 ? 0 : place;
      const int floor = static_cast<int>(place), below = table.below[floor < table.most ? floor : table.most - 1];
      const float level = table.levels[below], gap = static_cast<float>(table.levels[below + 1]) - level;
      const float uniform = (static_cast<float>(random[at + j]) + 0.5f) * 0x1p-16f;
      const bool is_up = uniform < (place - level) / gap;
      const int number = below + is_up;
      held |= static_cast<uint64_t>(x.packed ? number : table.levels[number]) << (bits * j);
      if (!x.keep) continue;
      const float integer = table.levels[number], value = (integer + integer - most) * 0.5f * step;
      x.signal[i] = finite_or_zero(a - value);
    }
    store_eight(held, x.bytes + share * x.num_bytes, (tile + at) / 8 * bits, bits, x.num_bytes);
  }
}

__global__ void sum_integers_kernel(IntegerTable table, IntegerSums x) {
  const int64_t i = 8 * thread_index();
  if (i >= x.n) return;
  uint32_t sum[8] = {};
  for (int64_t w = 0; w < x.num_rows; ++w) {
    const uint64_t held = load_eight(x.bytes + w * x.num_bytes, i / 8 * table.bits, table.bits, x.num_bytes);
    SAGE_UNROLL
    for (int j = 0; j < 8; ++j) sum[j] += table.levels[held >> (table.bits * j) & ((1u << table.bits) - 1)];
  }
  uint8_t* plane = x.out;
  for (int p = 0; 8 * p < x.bits; ++p) {
    const int width = width_of(x.bits, p);
    const int64_t num_bytes = (x.n * width + 7) / 8;
    uint64_t held = 0;
    SAGE_UNROLL
    for (int j = 0; j < 8; ++j)
      if (i + j < x.n) held |= static_cast<uint64_t>(sum[j] >> (8 * p) & 0xff) << (width * j);
    store_eight(held, plane, i / 8 * width, width, num_bytes);
    plane += num_bytes;
  }
}

__global__ void average_integers_kernel(IntegerMeans x) {
  const int64_t eights = (x.length + 7) / 8, share = thread_index() / eights;
  const int64_t at = 8 * (thread_index() - share * eights), first = share * x.length + at;
  if (first >= x.n) return;
  uint32_t sum[8] = {};
  const uint8_t* plane = x.bytes + share * x.num_bytes;
  for (int p = 0; 8 * p < x.bits; ++p) {
    const int width = width_of(x.bits, p);
    const int64_t num_bytes = (x.length * width + 7) / 8;
    const uint64_t held = load_eight(plane, at / 8 * width, width, num_bytes);
    SAGE_UNROLL
    for (int j = 0; j < 8; ++j) sum[j] |= (static_cast<uint32_t>(held >> (width * j)) & ((1u << width) - 1)) << (8 * p);
    plane += num_bytes;
  }
  const float divisor = static_cast<float>(2 * x.num);
  const uint32_t most = static_cast<uint32_t>(x.num * x.most);
  SAGE_UNROLL
  for (int j = 0; j < 8; ++j) {
    if (at + j >= x.length || first + j >= x.n) continue;
    const float step = x.parts.steps[group_of(x.parts.bounds, 0, x.parts.num - 1, first + j)];
    x.out[first + j] = static_cast<float>(static_cast<int32_t>(2 * sum[j] - most)) / divisor * step;
  }
}

}  // namespace

void quantise_integers(const IntegerTable& table, const IntegerRows& x, int64_t shares, Stream stream) {
  if (x.n > 0) SAGE_LAUNCH(quantise_integers_kernel, shares * tiles(x.length), stream, table, x);
}

void sum_integers(const IntegerTable& table, const IntegerSums& x, Stream stream) {
  if (x.n > 0) SAGE_LAUNCH(sum_integers_kernel, blocks_of((x.n + 7) / 8), stream, table, x);
}

void average_integers(const IntegerMeans& x, int64_t shares, Stream stream) {
  if (x.n > 0) SAGE_LAUNCH(average_integers_kernel, blocks_of(shares * ((x.length + 7) / 8)), stream, x);
}

}  // namespace sage::cuda
