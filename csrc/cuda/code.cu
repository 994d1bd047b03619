// Gaps between ascending indices in bytes (LEB128) on a GPU, both ways in a single pass: where the bytes of a tile belong, and
// which index is the last before it, are sums over the tiles before, by look-back. Each thread has successive elements.
#include "code.h"

#include "groups.cuh"
#include "lookback.cuh"
#include "threads.cuh"

namespace sage::cuda {

namespace {

constexpr unsigned long long kPastIndices = 1ull << 31;

__device__ __forceinline__ int bytes_of_gap(uint32_t gap) {
  return 1 + (gap > 0x7f) + (gap > 0x3fff) + (gap > 0x1fffff) + (gap > 0xfffffff);
}

__global__ void encode_gaps_kernel(const int32_t* at, int64_t num, uint8_t* bytes, int64_t room, unsigned long long* sums,
                                   GapTotals* totals) {
  __shared__ unsigned long long tiles_before;
  const int32_t number = next_tile(sums + tiles_of(num));
  const int64_t first = static_cast<int64_t>(number) * kTile + static_cast<int64_t>(threadIdx.x) * kItems;
  int32_t own[kItems];
  if (first + kItems <= num && is_aligned(at)) {
    SAGE_UNROLL
    for (int c = 0; c < kItems; c += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(at + first + c);
      own[c] = static_cast<int32_t>(four.x), own[c + 1] = static_cast<int32_t>(four.y);
      own[c + 2] = static_cast<int32_t>(four.z), own[c + 3] = static_cast<int32_t>(four.w);
    }
  } else {
    SAGE_UNROLL
    for (int c = 0; c < kItems; ++c) own[c] = first + c < num ? at[first + c] : 0;
  }
  int64_t last = first > 0 && first < num ? at[first - 1] : -1;
  uint32_t gaps[kItems] = {};
  unsigned long long size = 0;
  bool wrong = false;
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    if (first + c >= num) continue;
    wrong |= own[c] <= last;
    gaps[c] = static_cast<uint32_t>(own[c] - last - 1);
    size += static_cast<unsigned long long>(bytes_of_gap(gaps[c]));
    last = own[c];
  }
  if (wrong) atomicAdd(&totals->wrong, 1ull);
  unsigned long long all;
  const unsigned long long threads_before = sum_threads(size, all);
  if (threadIdx.x < kLanes) {
    const unsigned long long found = sum_before(sums, 0, number, all);
    if (threadIdx.x == 0) {
      tiles_before = found;
      atomicAdd(&totals->bytes, all);
    }
  }
  __syncthreads();
  auto to = static_cast<int64_t>(tiles_before + threads_before);
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    if (first + c >= num || to + kLongest > room) continue;  // where indices do not ascend, there may be no room
    uint32_t gap = gaps[c];
    for (; gap > 0x7f; gap >>= 7) bytes[to++] = static_cast<uint8_t>(gap | 0x80);
    bytes[to++] = static_cast<uint8_t>(gap);
  }
}

// An index is the sum of the gaps up to its own, each of them with 1 more, less 1.
__global__ void decode_gaps_kernel(const uint8_t* bytes, int64_t num_bytes, int64_t num, int32_t* at, unsigned long long* sums,
                                   GapTotals* totals) {
  __shared__ unsigned long long ends_before, index_before;
  const int64_t num_tiles = tiles_of(num_bytes);
  const int32_t number = next_tile(sums + 2 * num_tiles);
  const int64_t first = static_cast<int64_t>(number) * kTile + static_cast<int64_t>(threadIdx.x) * kItems;
  uint32_t words[kItems / 4] = {};
  if (first + kItems <= num_bytes && is_aligned(bytes)) {
    const uint4 all = *reinterpret_cast<const uint4*>(bytes + first);
    words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
  } else {
    SAGE_UNROLL
    for (int c = 0; c < kItems; ++c)
      if (first + c < num_bytes) words[c / 4] |= static_cast<uint32_t>(bytes[first + c]) << 8 * (c % 4);
  }
  // The bytes of a gap that began before.
  unsigned long long gap = 0;
  int shift = 0;
  for (; shift < 7 * kLongest && shift / 7 < first && first < num_bytes; shift += 7) {
    const uint32_t byte = bytes[first - 1 - shift / 7];
    if (byte < 0x80) break;
    gap = gap << 7 | (byte & 0x7f);
  }
  const unsigned long long begun = gap;
  const int begun_shift = shift;
  unsigned long long ends = 0, sum = 0;
  bool wrong = false;
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    if (first + c >= num_bytes) continue;
    const uint32_t byte = words[c / 4] >> 8 * (c % 4) & 0xff;
    wrong |= shift >= 7 * kLongest || (first + c == num_bytes - 1 && byte >= 0x80);
    if (shift < 7 * kLongest) gap |= static_cast<unsigned long long>(byte & 0x7f) << shift;
    shift += 7;
    if (byte >= 0x80) continue;
    sum += gap + 1, ++ends;
    gap = 0, shift = 0;
  }
  unsigned long long all_ends, all;
  const unsigned long long ends_here = sum_threads(ends, all_ends), here = sum_threads(sum, all);
  // A tile that reaches beyond all indices counts little more than that, so that sums do not overflow.
  const unsigned long long most = all <= kPastIndices ? all : kPastIndices + 1;
  if (threadIdx.x < 2 * kLanes) {
    const bool is_sum = threadIdx.x >= kLanes;
    const unsigned long long found = sum_before(sums + (is_sum ? num_tiles : 0), 0, number, is_sum ? most : all_ends);
    if (threadIdx.x == 0) {
      ends_before = found;
      if (number == num_tiles - 1) wrong |= found + all_ends != static_cast<unsigned long long>(num);
    }
    if (threadIdx.x == kLanes) {
      index_before = found;
      if (number == num_tiles - 1) wrong |= found + all > kPastIndices;
    }
  }
  if (wrong) atomicAdd(&totals->wrong, 1ull);
  __syncthreads();
  auto to = static_cast<int64_t>(ends_before + ends_here);
  unsigned long long index = index_before + here;
  gap = begun, shift = begun_shift;
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    if (first + c >= num_bytes) continue;
    const uint32_t byte = words[c / 4] >> 8 * (c % 4) & 0xff;
    if (shift < 7 * kLongest) gap |= static_cast<unsigned long long>(byte & 0x7f) << shift;
    shift += 7;
    if (byte >= 0x80) continue;
    index += gap + 1;
    if (to < num) at[to++] = static_cast<int32_t>(index - 1);
    gap = 0, shift = 0;
  }
}

}  // namespace

void encode_gaps(const int32_t* at, int64_t num, uint8_t* bytes, unsigned long long* sums, GapTotals* totals, Stream stream) {
  if (num > 0)
    SAGE_LAUNCH(encode_gaps_kernel, tiles(num), stream, at, num, bytes, most_gap_bytes(num), sums, totals);
}

void decode_gaps(const uint8_t* bytes, int64_t num_bytes, int64_t num, int32_t* at, unsigned long long* sums,
                 GapTotals* totals, Stream stream) {
  if (num_bytes > 0)
    SAGE_LAUNCH(decode_gaps_kernel, tiles(num_bytes), stream, bytes, num_bytes, num, at, sums, totals);
}

}  // namespace sage::cuda
