// Magnitudes by rank in the groups of a vector, in a number of launches that does not depend on the number of groups. Three
// passes count digits of 11, 11 and 9 bits; the block that counts the last tile of a group chooses the group's digit.
#include <cstddef>
#include <utility>

#include "lookback.cuh"
#include "segments.cuh"

namespace sage::cuda {

namespace {

constexpr int64_t kWave = 1024;  // blocks, each of as many tiles: a histogram is added up once for all of them
constexpr int kSearchWords = sizeof(Search) / sizeof(uint32_t);

__global__ void begin_searches(const int32_t* wanted, bool cumulative, int64_t num, uint32_t* words,
                               unsigned long long* sums, int64_t num_sums) {
  const int64_t i = thread_index(), stop = num * kSearchWords;
  if (i < stop) {
    const int64_t s = i / kSearchWords;
    const bool is_left = i % kSearchWords == offsetof(Search, left) / sizeof(uint32_t);
    words[i] = !is_left ? 0 : static_cast<uint32_t>(cumulative ? wanted[s + 1] - wanted[s] : wanted[s]);
  } else if (i - stop < num_sums) {
    sums[i - stop] = 0;
  }
}

// Counts a digit of the elements whose higher bits are those found. Where a warp's elements are alike, one lane adds them.
__device__ __forceinline__ void count_digit(uint32_t* counts, bool counted, uint32_t digit) {
  const uint32_t first = __shfl_sync(kWholeWarp, digit, 0);
  const unsigned alike = __ballot_sync(kWholeWarp, counted && digit == first);
  if (threadIdx.x % kLanes == 0 && alike) atomicAdd(counts + first, static_cast<uint32_t>(__popc(alike)));
  if (counted && digit != first) atomicAdd(counts + digit, 1u);
}

// Chooses the digit of the rank, from the largest down. All threads of the block must call it.
__device__ __forceinline__ void choose_digit(Search* search, int shift) {
  constexpr int kEach = kDigits / kThreads;
  __shared__ uint32_t sums[kWarps];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, top = kDigits - 1 - kEach * static_cast<int>(threadIdx.x);
  const volatile uint32_t* counts = search->counts;  // added up by other blocks
  uint32_t each[kEach], own = 0;
  SAGE_UNROLL
  for (int d = 0; d < kEach; ++d) own += each[d] = counts[top - d];
  const uint32_t left = search->left, upto = warp_sum(own);
  if (lane == kLanes - 1) sums[warp] = upto;
  __syncthreads();
  uint32_t before = upto - own;
  for (int w = 0; w < warp; ++w) before += sums[w];
  if (before < left && left <= before + own) {
    int digit = top;
    SAGE_UNROLL
    for (int d = 0; d < kEach - 1; ++d) {
      if (before + each[d] >= left) break;
      before += each[d];
      --digit;
    }
    search->bits |= static_cast<uint32_t>(digit) << shift;
    search->left = left - before;
  }
  if (threadIdx.x == 0) {
    if (left == 0) search->bits = kNothing;
    search->done = 0;
  }
  for (int d = 0; d < kEach; ++d) search->counts[top - d] = 0;
  __syncthreads();
}

// Each block counts `num` successive tiles, of one group after another, and of one rank after another.
__global__ void count_digits(Segments cut, Pass pass, Search* searches, int32_t each, int64_t num, int shift, int width) {
  __shared__ uint32_t counts[kDigits];
  __shared__ uint32_t done;
  const int64_t all = static_cast<int64_t>(each) * cut.num_tiles, begin = blockIdx.x * num;
  const int64_t stop = begin + num < all ? begin + num : all;
  for (int64_t at = begin; at < stop;) {
    const int64_t rank = at / cut.num_tiles, before = rank * cut.num_tiles, from = at;
    const int32_t group = Segment(cut, static_cast<int32_t>(at - before)).group;
    const int64_t behind = before + cut.first_tile[group + 1], last = behind < stop ? behind : stop;
    Search* search = searches + static_cast<int64_t>(group) * each + rank;
    for (int digit = threadIdx.x; digit < kDigits; digit += kThreads) counts[digit] = 0;
    __syncthreads();
    const uint32_t high = search->bits >> (shift + width);
    for (; at < last; ++at) {
      const Segment own(cut, static_cast<int32_t>(at - before));
      float a[kQuads][4];
      add_tile(pass.signal, pass.grad, pass.clear, own, a);
      SAGE_UNROLL
      for (int c = 0; c < kQuads; ++c) {
        SAGE_UNROLL
        for (int j = 0; j < 4; ++j) {
          const uint32_t bits = magnitude(a[c][j]);
          count_digit(counts, own.has(quad_of(c) + j) && bits >> (shift + width) == high, bits >> shift & ((1u << width) - 1));
        }
      }
    }
    __syncthreads();
    for (int digit = threadIdx.x; digit < kDigits; digit += kThreads)
      if (counts[digit]) atomicAdd(search->counts + digit, counts[digit]);
    __threadfence();  // the counts before the number of tiles
    __syncthreads();
    const auto own = static_cast<uint32_t>(last - from);
    if (threadIdx.x == 0) done = atomicAdd(&search->done, own) + own;
    __syncthreads();
    if (done == static_cast<uint32_t>(cut.first_tile[group + 1] - cut.first_tile[group])) {
      __threadfence();
      choose_digit(search, shift);
    }
  }
}

void find(const Segments& cut, Pass pass, int32_t each, Search* searches, Stream stream) {
  const int64_t all = static_cast<int64_t>(each) * cut.num_tiles, num = (all + kWave - 1) / kWave;
  if (all == 0) return;
  for (const auto& [high, low] : {std::pair{31, 20}, std::pair{20, 9}, std::pair{9, 0}}) {
    const int shift = low, width = high - low;
    SAGE_LAUNCH(count_digits, (all + num - 1) / num, stream, cut, pass, searches, each, num, shift, width);
    pass.grad = nullptr;  // added now
  }
}

void begin(const Segments& cut, bool cumulative, int64_t num, Search* searches, unsigned long long* sums,
           int64_t num_sums, Stream stream) {
  auto* words = reinterpret_cast<uint32_t*>(searches);
  const int64_t all = num * kSearchWords + num_sums;
  if (all > 0) SAGE_LAUNCH(begin_searches, blocks_of(all), stream, cut.wanted, cumulative, num, words, sums, num_sums);
}

// Takes the elements above the k-th of their group, and the first of the equal ones.
__global__ void take_tiles(Segments cut, Pass pass, const Search* searches, unsigned long long* sums, float* values,
                           int32_t* indices) {
  __shared__ unsigned long long tiles_before;
  const int32_t number = next_tile(sums + cut.num_tiles);
  const Segment own(cut, number);
  const uint32_t bits = searches[own.group].bits, wanted = searches[own.group].left;
  float a[kQuads][4];
  load_tile(pass.signal, own, a);
  uint32_t counts[kQuads], before[kQuads];  // of those above, and of those equal above bit 16
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    counts[c] = 0;
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (!own.has(quad_of(c) + j)) continue;
      counts[c] += magnitude(a[c][j]) > bits ? 1 : magnitude(a[c][j]) == bits ? 1u << 16 : 0;
    }
  }
  const uint32_t all = sum_quads(counts, before);
  if (threadIdx.x < kLanes) {
    const unsigned long long found = sum_before(sums, cut.first_tile[own.group], number,
                                                (all & 0xffff) | static_cast<unsigned long long>(all >> 16) << 31);
    if (threadIdx.x == 0) tiles_before = found;
  }
  __syncthreads();
  if (all == 0) return;
  const auto above_before = static_cast<uint32_t>(tiles_before & 0x7fffffffu);
  const auto equal_before = static_cast<uint32_t>(tiles_before >> 31);
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    if (counts[c] == 0) continue;
    uint32_t above = above_before + (before[c] & 0xffff), equal = equal_before + (before[c] >> 16);
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int at = quad_of(c) + j;
      const bool is_above = magnitude(a[c][j]) > bits, is_equal = magnitude(a[c][j]) == bits;
      if (!own.has(at) || !(is_above || is_equal)) continue;
      if (is_above || equal < wanted) {
        const int64_t to = static_cast<int64_t>(cut.wanted[own.group]) + above + (equal < wanted ? equal : wanted);
        values[to] = a[c][j];
        indices[to] = static_cast<int32_t>(own.tile + at);
        if (pass.keep) pass.signal[own.tile + at] = 0;
      }
      above += is_above;
      equal += is_equal;
    }
  }
}

}  // namespace

void search(const Segments& cut, const Pass& pass, int32_t each, Search* searches, unsigned long long* sums,
            int64_t num_sums, Stream stream) {
  begin(cut, false, static_cast<int64_t>(each) * cut.num, searches, sums, num_sums, stream);
  find(cut, pass, each, searches, stream);
}

void top(const Segments& cut, const Pass& pass, Search* searches, unsigned long long* sums, float* values,
         int32_t* indices, Stream stream) {
  if (cut.num_tiles == 0) return;
  begin(cut, true, cut.num, searches, sums, cut.num_tiles + 1, stream);
  find(cut, pass, 1, searches, stream);
  SAGE_LAUNCH(take_tiles, cut.num_tiles, stream, cut, pass, searches, sums, values, indices);
}

}  // namespace sage::cuda
