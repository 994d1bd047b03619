// Sums and maxima over buckets in one pass that also adds the gradient, in the order of cpu/sums.h: a warp adds a chunk
// of 1,024 elements, its lanes are added by halves, and chunks pairwise with doubling stride.
#pragma once

#include "groups.cuh"

namespace sage::cuda {

__device__ __forceinline__ void merge(Statistic& into, const Statistic& other) {
  into.sum += other.sum;
  into.other += other.other;
  into.largest = into.largest > other.largest ? into.largest : other.largest;
  into.below += other.below;
}

__device__ __forceinline__ Statistic from_below(const Statistic& own, int delta) {
  return {__shfl_down_sync(kWholeWarp, own.sum, delta), __shfl_down_sync(kWholeWarp, own.other, delta),
          __shfl_down_sync(kWholeWarp, own.largest, delta), __shfl_down_sync(kWholeWarp, own.below, delta)};
}

// What is added up of a signal: an element, and what stands for none where a chunk ends.
template <Kind kKind>
struct Of {
  using Sum = Statistic;

  __device__ __forceinline__ float none() const { return 0; }

  __device__ __forceinline__ void add(Statistic& own, float a) const {
    const double wide = a;
    if (kKind == Kind::absolute) own.sum += a < 0 ? -wide : wide;
    if (kKind == Kind::squares) own.sum += wide * wide;
    if (kKind == Kind::squares || kKind == Kind::largest)
      own.largest = own.largest > magnitude(a) ? own.largest : magnitude(a);
    if (kKind == Kind::sides) {
      own.sum += a < 0 ? wide : 0;
      own.other += a < 0 ? 0 : wide;
      own.below += a < 0;
    }
  }
};

// signal += grad, where there is a gradient, for one chunk at most, and its sum, in lane 0.
template <class What>
__device__ __forceinline__ typename What::Sum of_chunk(const What& what, float* signal, const float* grad, int64_t begin,
                                                       int64_t end) {
  constexpr int kRows = 8;  // that many reads are in flight
  typename What::Sum own{};
  for (int64_t row = begin + threadIdx.x % kLanes; row < end; row += kRows * kLanes) {
    float a[kRows];
    for (int r = 0; r < kRows; ++r) a[r] = row + r * kLanes < end ? signal[row + r * kLanes] : what.none();
    if (grad) {
      for (int r = 0; r < kRows; ++r)
        if (row + r * kLanes < end) a[r] += grad[row + r * kLanes];
      for (int r = 0; r < kRows; ++r)
        if (row + r * kLanes < end) signal[row + r * kLanes] = a[r];
    }
    for (int r = 0; r < kRows; ++r) what.add(own, a[r]);
  }
  for (int half = kLanes / 2; half > 0; half /= 2) merge(own, from_below(own, half));
  return own;
}

// Each block adds one piece, a warp a chunk of it.
template <class What>
__global__ void add_pieces(Cut cut, What what, float* signal, const float* grad, typename What::Sum* pieces) {
  __shared__ typename What::Sum sums[kWarps];
  const int warp = threadIdx.x / kLanes;
  const int32_t g = group_of(cut.first_piece, 0, cut.num_groups - 1, blockIdx.x);
  const int64_t number = blockIdx.x - cut.first_piece[g], group = cut.bounds[g], stop = cut.bounds[g + 1];
  const int64_t each = (cut.bucket + kPiece - 1) / kPiece;  // pieces of a bucket, where a group has several
  const int64_t bucket = cut.bucket ? group + number / each * cut.bucket : group;
  const int64_t end = cut.bucket && bucket + cut.bucket < stop ? bucket + cut.bucket : stop;
  const int64_t begin = bucket + (cut.bucket ? number % each : number) * kPiece + warp * kChunk;
  const auto own = of_chunk(what, signal, grad, begin, begin + kChunk < end ? begin + kChunk : end);
  if (threadIdx.x % kLanes == 0) sums[warp] = own;
  __syncthreads();
  if (warp > 0) return;
  auto all = sums[threadIdx.x % kWarps];
  for (int delta = 1; delta < kWarps; delta *= 2) merge(all, from_below(all, delta));
  if (threadIdx.x == 0) pieces[blockIdx.x] = all;
}

// Each block adds the pieces of one bucket, 32 at a time, and passes the statistic to `write`. `other` is as large as
// `pieces`: both are overwritten.
template <class Sum, class Write>
__global__ void merge_pieces(Cut cut, Sum* pieces, Sum* other, Write write) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  const int32_t g = group_of(cut.first_bucket, 0, cut.num_groups - 1, b);
  const int64_t each = (cut.bucket + kPiece - 1) / kPiece, before = (b - cut.first_bucket[g]) * each;
  const int64_t first = cut.first_piece[g] + before;
  int64_t num = cut.bucket ? each : cut.first_piece[g + 1] - first;
  const bool has = num > 0;
  Sum *from = pieces + first, *to = other + first;
  for (; num > 1; num = (num + kLanes - 1) / kLanes) {
    for (int64_t run = warp; run * kLanes < num; run += kWarps) {
      const int64_t i = run * kLanes + lane;
      Sum own{};
      if (i < num) own = from[i];
      for (int delta = 1; delta < kLanes; delta *= 2) merge(own, from_below(own, delta));
      if (lane == 0) to[run] = own;
    }
    __syncthreads();
    Sum* const swapped = from;
    from = to;
    to = swapped;
  }
  if (threadIdx.x == 0) write(b, has ? from[0] : Sum{});
}

// Each warp adds one bucket, which is a chunk or less.
template <class What, class Write>
__global__ void add_small_buckets(Cut cut, What what, float* signal, const float* grad, Write write) {
  const int64_t b = thread_index() / kLanes;
  if (b >= cut.num_buckets) return;
  const int32_t g = group_of(cut.first_bucket, 0, cut.num_groups - 1, b);
  const int64_t begin = cut.bounds[g] + (b - cut.first_bucket[g]) * cut.bucket, stop = cut.bounds[g + 1];
  const auto own = of_chunk(what, signal, grad, begin, begin + cut.bucket < stop ? begin + cut.bucket : stop);
  if (threadIdx.x % kLanes == 0) write(static_cast<int32_t>(b), own);
}

// Two launches at most, for every number of buckets. `pieces` has room for twice the pieces of the cut.
template <class What, class Write>
void add_buckets(const Cut& cut, const What& what, float* signal, const float* grad, typename What::Sum* pieces,
                 const Write& write, Stream stream) {
  using Sum = typename What::Sum;
  if (cut.num_buckets == 0) return;
  if (cut.bucket > 0 && cut.bucket <= kChunk) {
    SAGE_LAUNCH((add_small_buckets<What, Write>), (cut.num_buckets + kWarps - 1) / kWarps, stream, cut, what, signal, grad,
                write);
    return;
  }
  if (cut.num_pieces > 0) SAGE_LAUNCH((add_pieces<What>), cut.num_pieces, stream, cut, what, signal, grad, pieces);
  SAGE_LAUNCH((merge_pieces<Sum, Write>), cut.num_buckets, stream, cut, pieces, pieces + cut.num_pieces, write);
}

template <Kind kKind, class Write>
void add_buckets(const Cut& cut, float* signal, const float* grad, Statistic* pieces, const Write& write, Stream stream) {
  add_buckets(cut, Of<kKind>{}, signal, grad, pieces, write, stream);
}

}  // namespace sage::cuda
