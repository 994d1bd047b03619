// Random elements of all groups of a vector on a GPU: the draws of cpu/distinct.h, in rounds. A round has as many draws as
// elements are missing, so that there are never too many, and the order within a round does not matter.
#include "groups.cuh"
#include "philox.cuh"

namespace sage::cuda {

namespace {

constexpr int kTileDraws = 64, kDrawsEach = 4;  // of a tile, which takes 16 counters, and of a counter

// The draws [first, stop) of a group.
struct Round {
  int64_t first, stop;

  __device__ Round(const Draw& x, int32_t g, int number) : first(0) {
    int64_t missing = x.num[g] < 0 ? ~x.num[g] : x.num[g];
    const bool has_blocks = x.first_block[g] < x.first_block[g + 1];  // otherwise nothing was drawn yet
    for (int r = 0; has_blocks && r < number; ++r) {
      first += missing;
      missing -= x.found[r * x.num_groups + g];
    }
    stop = first + missing;
  }
};

// The block's part of a round: every `step`-th run of kThreads counters from its own on. Returns how many elements all of
// its threads found; all of them must call it.
__device__ __forceinline__ uint32_t draw_part(const Draw& x, int32_t g, const Round& round, int64_t part, int64_t step) {
  const int64_t base = x.bounds[g];
  const uint32_t n = static_cast<uint32_t>(x.bounds[g + 1] - base), skipped = n ? (0u - n) % n : 0;
  const int64_t stop = (round.stop + kTileDraws - 1) / kTileDraws * kTileCounters;
  uint32_t own = 0, total;
  for (int64_t c = round.first / kTileDraws * kTileCounters + part * kThreads + threadIdx.x; c < stop; c += step * kThreads) {
    uint32_t words[kDrawsEach];
    philox(x.key, (static_cast<uint64_t>(x.numbers[g]) << 32) + static_cast<uint64_t>(c), words);
    for (int w = 0; w < kDrawsEach; ++w) {
      const int64_t draw = c / kTileCounters * kTileDraws + kTileCounters * w + c % kTileCounters;
      const uint64_t scaled = static_cast<uint64_t>(words[w]) * n;
      if (draw < round.first || draw >= round.stop || static_cast<uint32_t>(scaled) < skipped) continue;
      const int64_t at = base + static_cast<int64_t>(scaled >> 32);
      const uint32_t bit = 1u << at % 32, before = atomicOr(x.words + at / 32, bit);
      own += !x.distinct || !(before & bit);
    }
  }
  block_sum_before(own, total);
  return total;
}

__global__ void draw_kernel(Draw x, int number) {
  const int32_t g = group_of(x.first_block, 0, x.num_groups - 1, blockIdx.x);
  const int64_t part = blockIdx.x - x.first_block[g], parts = x.first_block[g + 1] - x.first_block[g];
  const uint32_t found = draw_part(x, g, Round(x, g, number), part, parts);
  if (threadIdx.x == 0) atomicAdd(x.found + number * x.num_groups + g, static_cast<int32_t>(found));
}

// Each block draws what its group still misses.
__global__ void finish_kernel(Draw x, int number) {
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  Round round(x, g, number);
  for (int64_t missing = round.stop - round.first; missing > 0;) {
    round.stop = round.first + (missing < kThreads * kDrawsEach ? missing : kThreads * kDrawsEach);
    missing -= draw_part(x, g, round, 0, 1);
    round.first = round.stop;
    __syncthreads();
  }
}

// Each thread inverts the bits of a word that belong to groups of which the others were drawn.
__global__ void invert_kernel(Draw x, int64_t n) {
  const int64_t word = thread_index(), begin = 32 * word, end = begin + 32 < n ? begin + 32 : n;
  if (begin >= n) return;
  uint32_t flipped = 0;
  for (int32_t g = group_of(x.bounds, 0, x.num_groups - 1, begin); g < x.num_groups && x.bounds[g] < end; ++g) {
    const int64_t low = x.bounds[g] > begin ? x.bounds[g] - begin : 0;
    const int64_t high = (x.bounds[g + 1] < end ? x.bounds[g + 1] : end) - begin;
    if (x.num[g] < 0 && high > low) flipped |= (~0u >> (32 - (high - low))) << low;
  }
  x.words[word] ^= flipped;
}

}  // namespace

void draw(const Draw& x, const DrawTable& table, Stream stream) {
  if (x.num_groups == 0) return;
  for (int number = 0; number < table.num_rounds; ++number)
    SAGE_LAUNCH(draw_kernel, table.num_blocks, stream, x, number);
  SAGE_LAUNCH(finish_kernel, x.num_groups, stream, x, table.num_rounds);
  if (table.inverts) SAGE_LAUNCH(invert_kernel, blocks_of((table.n + 31) / 32), stream, x, table.n);
}

}  // namespace sage::cuda
