// Encodes levels as Elias streams on a GPU. A pass finds the bits of each tile, whose first gap begins in a tile before it; the
// next writes them, assembled in shared memory.
#include "elias.cuh"

namespace sage::cuda {

namespace {

constexpr int kFewBits = 16, kMostBits = 41;  // of a dense level, a gap of 1 included: of int8, and of int32

// A tile of levels, of which each thread has 16 in succession.
template <class T>
struct LevelTile {
  Segment own;
  T levels[kSpan];
  uint32_t set = 0;  // a bit for each that is not 0
  int at;            // of the first in the tile
  bool wrong = false;

  __device__ __forceinline__ LevelTile(const Segments& cut, int32_t number, const T* all) : own(cut, number) {
    at = static_cast<int>(threadIdx.x * kSpan);
    const int64_t begin = cut.bounds[own.group], end = cut.bounds[own.group + 1];
    own.tile = begin / kSpan * kSpan + static_cast<int64_t>(number - cut.first_tile[own.group]) * kTile;
    own.low = begin > own.tile ? static_cast<int>(begin - own.tile) : 0;
    own.high = end < own.tile + kTile ? static_cast<int>(end - own.tile) : kTile;
    if (own.low <= at && at + kSpan <= own.high && is_aligned(all)) {
      constexpr int kWide = kSpan * sizeof(T) / sizeof(float4);
      float4 read[kWide];
      SAGE_UNROLL
      for (int i = 0; i < kWide; ++i) read[i] = reinterpret_cast<const float4*>(all + own.tile + at)[i];
      memcpy(levels, read, sizeof levels);
    } else {
      SAGE_UNROLL
      for (int i = 0; i < kSpan; ++i) levels[i] = own.has(at + i) ? all[own.tile + at + i] : 0;
    }
    SAGE_UNROLL
    for (int i = 0; i < kSpan; ++i) {
      set |= static_cast<uint32_t>(levels[i] != 0) << i;
      if (sizeof(T) > 1 && static_cast<uint32_t>(levels[i]) == 0x80000000u) wrong = true;
    }
  }

  // The element behind this thread's last level; 0 if it has none.
  __device__ __forceinline__ int32_t behind_last() const {
    return set ? static_cast<int32_t>(own.tile + at + bit_length(set)) : 0;
  }

  // Calls `take` with the gap, sign and magnitude of each level; the last before them is in front of `behind`.
  template <class Take>
  __device__ __forceinline__ void each(int32_t behind, const Take& take) const {
    SAGE_UNROLL
    for (int i = 0; i < kSpan; ++i) {
      if (!(set >> i & 1)) continue;
      const auto next = static_cast<int32_t>(own.tile + at + i + 1);
      const auto level = static_cast<int32_t>(levels[i]);
      take(static_cast<uint32_t>(next - behind), level < 0, level < 0 ? 0u - static_cast<uint32_t>(level) : static_cast<uint32_t>(level));
      behind = next;
    }
  }

  __device__ __forceinline__ unsigned long long bits(int32_t behind) const {
    int sum = 0;
    each(behind, [&](uint32_t gap, bool, uint32_t magnitude) { sum += code_width(gap) + 1 + code_width(magnitude); });
    return static_cast<unsigned long long>(sum);
  }
};

template <class T>
__global__ void measure_tiles(Segments cut, const T* levels, Measured measured, unsigned long long* sums, EliasTotals* totals) {
  __shared__ uint32_t behind_tiles;
  const int32_t number = next_tile(sums + 2 * cut.num_tiles);
  const LevelTile<T> tile(cut, number, levels);
  if (tile.wrong) atomicAdd(&totals->wrong, 1ull);
  const int32_t group = tile.own.group, first = cut.first_tile[group];
  int32_t last;
  int32_t behind = largest_before(tile.behind_last(), last);
  if (threadIdx.x < kLanes) {
    const auto none = static_cast<uint32_t>(cut.bounds[group]);
    const uint32_t found = last_before(sums + cut.num_tiles, first, number, static_cast<uint32_t>(last), none);
    if (threadIdx.x == 0) {
      behind_tiles = found;
      measured.behind_last[number] = static_cast<int32_t>(found);
    }
  }
  __syncthreads();
  if (behind == 0) behind = static_cast<int32_t>(behind_tiles);
  unsigned long long all;
  sum_threads(tile.wrong ? 0 : tile.bits(behind), all);
  if (threadIdx.x >= kLanes) return;
  const unsigned long long before = sum_before(sums, first, number, all);
  if (threadIdx.x > 0) return;
  measured.bits_before[number] = before;
  if (number + 1 == cut.first_tile[group + 1]) measured.group_bits[group] = before + all;
}

__global__ void place_streams(int32_t num_groups, Measured measured, EliasTotals* totals) {
  unsigned long long words = 0, bits = 0;
  for (int32_t begin = 0; begin < num_groups; begin += kThreads) {
    const int32_t g = begin + static_cast<int32_t>(threadIdx.x);
    const unsigned long long own = g < num_groups ? measured.group_bits[g] : 0;
    unsigned long long all;
    const unsigned long long before = words + sum_threads((own + 31) / 32, all);
    words += all;
    sum_threads(own, all);
    bits += all;
    if (g >= num_groups) continue;
    measured.words_before[g] = before;
    measured.lengths[g] = static_cast<int32_t>(own);
  }
  if (threadIdx.x == 0) totals->words = words, totals->bits = bits;
}

// Writes the low `width` bits, the highest first, from bit `at` of words that are 0 there.
__device__ __forceinline__ void put(uint32_t* words, int& at, unsigned long long bits, int width) {
  while (width > 0) {
    const int room = 32 - at % 32, num = width < room ? width : room;
    const auto here = static_cast<uint32_t>(bits >> (width - num)) & (num == 32 ? ~0u : (1u << num) - 1);
    atomicOr(words + at / 32, here << (room - num));
    width -= num;
    at += num;
  }
}

template <class T>
__global__ void encode_tiles(Segments cut, const T* levels, Measured measured, uint32_t* words) {
  constexpr int kWords = kTile / 32 * (sizeof(T) > 1 ? kMostBits : kFewBits) + 4;  // and the first gap, and a part of a word
  __shared__ uint32_t here[kWords];
  const auto number = static_cast<int32_t>(blockIdx.x);
  const LevelTile<T> tile(cut, number, levels);
  int32_t last;
  int32_t behind = largest_before(tile.behind_last(), last);
  if (behind == 0) behind = measured.behind_last[number];
  unsigned long long all;
  const unsigned long long before = sum_threads(tile.bits(behind), all);
  if (all == 0) return;
  const unsigned long long begin = 32 * measured.words_before[tile.own.group] + measured.bits_before[number];
  const int skip = static_cast<int>(begin % 32), num = static_cast<int>((skip + all + 31) / 32);
  for (int i = threadIdx.x; i < num; i += kThreads) here[i] = 0;
  __syncthreads();
  int at = skip + static_cast<int>(before);
  tile.each(behind, [&](uint32_t gap, bool is_negative, uint32_t magnitude) {
    put(here, at, elias_code(gap), code_width(gap));
    const int width = code_width(magnitude);
    put(here, at, static_cast<unsigned long long>(is_negative) << width | elias_code(magnitude), width + 1);
  });
  __syncthreads();
  uint32_t* out = words + begin / 32;
  for (int i = threadIdx.x; i < num; i += kThreads) {
    if (i == 0 || i == num - 1)  // other tiles may have a part of these
      atomicOr(out + i, here[i]);
    else
      out[i] = here[i];
  }
}

}  // namespace

void measure_streams(const Segments& cut, const Levels& levels, const Measured& measured, unsigned long long* sums,
                     EliasTotals* totals, Stream stream) {
  const auto* bytes = static_cast<const int8_t*>(levels.data);
  const auto* wide = static_cast<const int32_t*>(levels.data);
  if (cut.num_tiles > 0 && levels.in_bytes)
    SAGE_LAUNCH(measure_tiles<int8_t>, cut.num_tiles, stream, cut, bytes, measured, sums, totals);
  else if (cut.num_tiles > 0)
    SAGE_LAUNCH(measure_tiles<int32_t>, cut.num_tiles, stream, cut, wide, measured, sums, totals);
  SAGE_LAUNCH(place_streams, 1, stream, cut.num, measured, totals);
}

void encode_streams(const Segments& cut, const Levels& levels, const Measured& measured, uint32_t* words, Stream stream) {
  const auto* bytes = static_cast<const int8_t*>(levels.data);
  const auto* wide = static_cast<const int32_t*>(levels.data);
  if (cut.num_tiles > 0 && levels.in_bytes)
    SAGE_LAUNCH(encode_tiles<int8_t>, cut.num_tiles, stream, cut, bytes, measured, words);
  else if (cut.num_tiles > 0)
    SAGE_LAUNCH(encode_tiles<int32_t>, cut.num_tiles, stream, cut, wide, measured, words);
}

}  // namespace sage::cuda
