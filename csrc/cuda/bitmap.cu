// Bitmaps of a vector's elements on a GPU: what is set is listed in ascending order, so nothing is sorted.
#include "device.cuh"

namespace sage::cuda {

namespace {

constexpr int kEach = 4;  // words of a thread: one access of 16 bytes

__global__ void zero_words(uint32_t* words, int64_t num) {
  const int64_t i = thread_index();
  if (4 * i < num) *reinterpret_cast<uint4*>(words + 4 * i) = uint4{0, 0, 0, 0};
}

__global__ void set_places(Bitmap x, const int32_t* at, int64_t num) {
  const int64_t i = thread_index();
  if (i < num && at[i] >= 0 && at[i] < x.n) atomicOr(x.words + at[i] / 32, 1u << at[i] % 32);
}

__device__ __forceinline__ uint32_t load_words(const Bitmap& x, uint32_t (&words)[kEach]) {
  const uint4 all = *reinterpret_cast<const uint4*>(x.words + kEach * thread_index());
  words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
  return __popc(all.x) + __popc(all.y) + __popc(all.z) + __popc(all.w);
}

__global__ void count_tiles(Bitmap x) {
  uint32_t words[kEach], total;
  block_sum_before(load_words(x, words), total);
  if (threadIdx.x == 0) x.counts[blockIdx.x] = static_cast<int32_t>(total);
}

// Runs after the scan, when the counts are the output positions of the tiles. A warp writes the bits of one word after the
// other, each lane one bit, so that writes coalesce.
__global__ void list_tiles(Bitmap x, int32_t* indices) {
  uint32_t words[kEach], total;
  const uint32_t set = load_words(x, words);
  const uint32_t own = static_cast<uint32_t>(x.counts[blockIdx.x]) + block_sum_before(set, total);
  const int lane = threadIdx.x % kLanes;
  const int64_t first = kEach * (thread_index() - lane);
  for (int source = 0; source < kLanes; ++source) {
    uint32_t to = __shfl_sync(kWholeWarp, own, source);
    for (int k = 0; k < kEach; ++k) {
      const uint32_t word = __shfl_sync(kWholeWarp, words[k], source);
      const int64_t number = first + kEach * source + k;
      if (x.before && lane == 0) x.before[number] = static_cast<int32_t>(to);
      if (word >> lane & 1) indices[to + __popc(word & ((1u << lane) - 1))] = static_cast<int32_t>(32 * number + lane);
      to += __popc(word);
    }
  }
}

__global__ void find_places_kernel(Bitmap x, const int32_t* at, int64_t num, int32_t* places) {
  const int64_t i = thread_index();
  if (i >= num) return;
  const bool is_inside = at[i] >= 0 && at[i] < x.n;
  const uint32_t lower = is_inside ? x.words[at[i] / 32] & ((1u << at[i] % 32) - 1) : 0;
  places[i] = is_inside ? x.before[at[i] / 32] + static_cast<int32_t>(__popc(lower)) : -1;
}

__global__ void find_members_kernel(Bitmap x, const int32_t* at, int64_t num, uint8_t* among) {
  const int64_t i = thread_index();
  if (i < num) among[i] = at[i] >= 0 && at[i] < x.n && (x.words[at[i] / 32] >> at[i] % 32 & 1);
}

}  // namespace

void zero(uint32_t* words, int64_t num, Stream stream) {
  if (num > 0) SAGE_LAUNCH(zero_words, blocks_of(num / 4), stream, words, num);
}

void set_bits(const Bitmap& x, const int32_t* at, int64_t num, Stream stream) {
  if (num > 0) SAGE_LAUNCH(set_places, blocks_of(num), stream, x, at, num);
}

void count_bits(const Bitmap& x, Stream stream) {
  if (x.n > 0) SAGE_LAUNCH(count_tiles, bit_tiles(x.n), stream, x);
  SAGE_LAUNCH(scan, 1, stream, x.counts, bit_tiles(x.n));
}

void list_bits(const Bitmap& x, int32_t* indices, Stream stream) {
  if (x.n > 0) SAGE_LAUNCH(list_tiles, bit_tiles(x.n), stream, x, indices);
}

void find_places(const Bitmap& x, const int32_t* at, int64_t num, int32_t* places, Stream stream) {
  if (num > 0) SAGE_LAUNCH(find_places_kernel, blocks_of(num), stream, x, at, num, places);
}

void find_members(const Bitmap& x, const int32_t* at, int64_t num, uint8_t* among, Stream stream) {
  if (num > 0) SAGE_LAUNCH(find_members_kernel, blocks_of(num), stream, x, at, num, among);
}

}  // namespace sage::cuda
