// Exact top-k on a GPU. Three counting passes find the k-th largest magnitude with 11, 11 and 9 bits, and an ordered
// compaction takes the larger elements and the first of the equal ones. The host does not wait for the device.
#include <utility>

#include "pass.cuh"

namespace sage::cuda {

namespace {

// The state of the search for the k-th largest, in device memory. `counts` belong to the current digit and are 0
// between the passes.
struct Search {
  uint32_t bits;      // its high bits
  uint32_t left;      // of what has those, which by rank it is (from 1); at the end: how many equal ones to take
  uint32_t counts[kDigits];
};

__global__ void begin_search(Search* search, uint32_t k) {
  for (int digit = threadIdx.x; digit < kDigits; digit += kThreads) search->counts[digit] = 0;
  if (threadIdx.x == 0) {
    search->bits = 0;
    search->left = k;
  }
}

// Counts a digit of the elements whose higher bits equal those of the k-th. The first pass also adds the gradient.
__global__ void count_digits(Pass pass, Search* search, int shift, int width) {
  __shared__ uint32_t counts[kDigits];
  for (int digit = threadIdx.x; digit < kDigits; digit += kThreads) counts[digit] = 0;
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  const int high = shift + width;
  float a[kItems];
  load(pass, begin, a);
  for (int c = 0; c < kItems; ++c) {
    const int64_t i = begin + c * kThreads + threadIdx.x;
    if (i >= pass.n) continue;
    if (pass.grad) {
      pass.signal[i] = a[c];
      if (pass.clear) pass.grad[i] = 0;
    }
    const uint32_t bits = magnitude(a[c]);
    if (bits >> high == search->bits >> high) atomicAdd(counts + (bits >> shift & ((1u << width) - 1)), 1u);
  }
  __syncthreads();
  for (int digit = threadIdx.x; digit < kDigits; digit += kThreads)
    if (counts[digit]) atomicAdd(search->counts + digit, counts[digit]);
}

// One thread of one block chooses the digit, in at most 2,048 steps and without the host.
__global__ void choose_digit(Search* search, int shift) {
  if (threadIdx.x == 0) {
    int digit = kDigits - 1;
    while (search->left > search->counts[digit]) search->left -= search->counts[digit--];
    search->bits |= static_cast<uint32_t>(digit) << shift;
  }
  __syncthreads();
  for (int digit = threadIdx.x; digit < kDigits; digit += kThreads) search->counts[digit] = 0;
}

// Counts the elements of each tile that are above the k-th, and those equal to it.
__global__ void count_tiles(Pass pass, const Search* search, int32_t* above, int32_t* equal) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kItems];
  bool is_above[kItems], is_equal[kItems];
  uint32_t ranks[kItems];
  load(pass, begin, a);
  for (int c = 0; c < kItems; ++c) {
    const bool inside = begin + c * kThreads + threadIdx.x < pass.n;
    is_above[c] = inside && magnitude(a[c]) > search->bits;
    is_equal[c] = inside && magnitude(a[c]) == search->bits;
  }
  const uint32_t num_above = rank_flags(is_above, ranks), num_equal = rank_flags(is_equal, ranks);
  if (threadIdx.x == 0) {
    above[blockIdx.x] = static_cast<int32_t>(num_above);
    equal[blockIdx.x] = static_cast<int32_t>(num_equal);
  }
}

// Runs after both scans, when `above` and `equal` are the numbers in the preceding tiles.
__global__ void take_tiles(Pass pass, const Search* search, const int32_t* above, const int32_t* equal, int64_t base,
                           float* values, int32_t* indices) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  const uint32_t wanted = search->left, ties_before = equal[blockIdx.x];
  float a[kItems];
  bool flags[kItems];
  uint32_t ranks[kItems];
  load(pass, begin, a);
  for (int c = 0; c < kItems; ++c)
    flags[c] = begin + c * kThreads + threadIdx.x < pass.n && magnitude(a[c]) == search->bits;
  rank_flags(flags, ranks);
  for (int c = 0; c < kItems; ++c) {
    const bool inside = begin + c * kThreads + threadIdx.x < pass.n;
    flags[c] = (flags[c] && ties_before + ranks[c] < wanted) || (inside && magnitude(a[c]) > search->bits);
  }
  rank_flags(flags, ranks);
  const int64_t to = above[blockIdx.x] + static_cast<int64_t>(ties_before < wanted ? ties_before : wanted);
  for (int c = 0; c < kItems; ++c) {
    if (!flags[c]) continue;
    const int64_t i = begin + c * kThreads + threadIdx.x;
    values[to + ranks[c]] = a[c];
    indices[to + ranks[c]] = static_cast<int32_t>(base + i);
    if (pass.keep) pass.signal[i] = 0;
  }
}

__global__ void add(Pass pass) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kItems];
  load(pass, begin, a);
  for (int c = 0; c < kItems; ++c) {
    const int64_t i = begin + c * kThreads + threadIdx.x;
    if (i >= pass.n) continue;
    pass.signal[i] = a[c];
    if (pass.clear) pass.grad[i] = 0;
  }
}

}  // namespace

void top(Pass pass, int64_t k, int64_t base, uint32_t* workspace, int32_t* above, int32_t* equal, float* values,
         int32_t* indices, Stream stream) {
  static_assert(sizeof(Search) == kSearch * sizeof(uint32_t));
  auto* search = reinterpret_cast<Search*>(workspace);
  const int64_t num_tiles = tiles(pass.n);
  if (num_tiles == 0) return;
  if (k == 0) {
    if (pass.grad) SAGE_LAUNCH(add, num_tiles, stream, pass);
    return;
  }
  SAGE_LAUNCH(begin_search, 1, stream, search, static_cast<uint32_t>(k));
  for (const auto& [high, low] : {std::pair{31, 20}, std::pair{20, 9}, std::pair{9, 0}}) {
    const int shift = low, width = high - low;
    SAGE_LAUNCH(count_digits, num_tiles, stream, pass, search, shift, width);
    SAGE_LAUNCH(choose_digit, 1, stream, search, shift);
    pass.grad = nullptr;  // added now
  }
  SAGE_LAUNCH(count_tiles, num_tiles, stream, pass, search, above, equal);
  SAGE_LAUNCH(scan, 1, stream, above, num_tiles);
  SAGE_LAUNCH(scan, 1, stream, equal, num_tiles);
  SAGE_LAUNCH(take_tiles, num_tiles, stream, pass, search, above, equal, base, values, indices);
}

}  // namespace sage::cuda
