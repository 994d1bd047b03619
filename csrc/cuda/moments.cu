// Moments, magnitudes above limits, and samples on a GPU. Sums have the order of cpu/sums.h, and lists that of the elements.
#include "moments.h"

#include "lookback.cuh"
#include "segments.cuh"
#include "sums.cuh"

namespace sage::cuda {

__device__ __forceinline__ float number(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__device__ __forceinline__ void merge(Moments& into, const Moments& other) {
  into.sum += other.sum;
  into.absolute += other.absolute;
  into.square += other.square;
  into.most = into.most > other.most ? into.most : other.most;
  into.nonzero += other.nonzero;
}

__device__ __forceinline__ Moments from_below(const Moments& own, int delta) {
  return {__shfl_down_sync(kWholeWarp, own.sum, delta), __shfl_down_sync(kWholeWarp, own.absolute, delta),
          __shfl_down_sync(kWholeWarp, own.square, delta), __shfl_down_sync(kWholeWarp, own.most, delta),
          __shfl_down_sync(kWholeWarp, own.nonzero, delta)};
}

namespace {

struct OfMoments {
  using Sum = Moments;

  __device__ __forceinline__ float none() const { return 0; }

  __device__ __forceinline__ void add(Moments& own, float a) const {
    const double wide = a;
    const uint32_t bits = magnitude(a);
    own.sum += wide;
    own.absolute += static_cast<double>(number(bits));
    own.square += wide * wide;
    own.most = own.most > bits ? own.most : bits;
    own.nonzero += bits > 0;
  }
};

struct WriteMoments {
  double* rows;
  int32_t num_groups;

  __device__ void operator()(int32_t g, const Moments& all) const {
    rows[g] = all.sum;
    rows[num_groups + g] = all.absolute;
    rows[2 * num_groups + g] = all.square;
    rows[3 * num_groups + g] = all.nonzero;
    rows[4 * num_groups + g] = number(all.most);
  }
};

struct OfExcess {
  using Sum = Moments;
  const Excess* state;

  __device__ __forceinline__ float none() const { return number(state->least); }

  __device__ __forceinline__ void add(Moments& own, float a) const {
    const double over = a - number(state->least);
    own.sum += over;
    own.square += over * over;
  }
};

struct WriteExcess {
  const Excess* state;
  double* out;

  __device__ void operator()(int32_t, const Moments& all) const {
    const int32_t num = state->bounds[1];
    out[0] = num;
    out[1] = num > 0 ? number(state->least) : 0;
    out[2] = all.sum;
    out[3] = all.square;
  }
};

__global__ void write_found(const Search* searches, int64_t num, float* magnitudes) {
  const int64_t i = thread_index();
  if (i < num) magnitudes[i] = number(searches[i].bits);
}

// The magnitudes of a tile at or above a limit, as a bit for each element.
struct Above {
  uint32_t taken = 0, least = kNothing, sizes[kQuads];

  __device__ __forceinline__ Above(const Segment& own, const float (&a)[kQuads][4], uint32_t limit) {
    SAGE_UNROLL
    for (int c = 0; c < kQuads; ++c) {
      sizes[c] = 0;
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t bits = magnitude(a[c][j]);
        if (!own.has(quad_of(c) + j) || bits < limit) continue;
        taken |= 1u << (4 * c + j);
        least = least < bits ? least : bits;
        ++sizes[c];
      }
    }
  }

  __device__ __forceinline__ void write(const float (&a)[kQuads][4], unsigned long long tiles_before,
                                        const uint32_t (&before)[kQuads], float* magnitudes) const {
    each_taken(taken, tiles_before, before,
               [&](int c, int j, int64_t to) { magnitudes[to] = number(magnitude(a[c][j])); });
  }
};

__global__ void take_above_tiles(Segments cut, const float* signal, float* magnitudes, unsigned long long* counts,
                                 unsigned long long* sums) {
  __shared__ unsigned long long tiles_before;
  const int32_t tile = next_tile(sums + cut.num_tiles);
  const Segment own(cut, tile);
  float a[kQuads][4];
  load_tile(signal, own, a);
  const Above above(own, a, static_cast<uint32_t>(cut.wanted[own.group]));
  uint32_t before[kQuads];
  const uint32_t all = sum_quads(above.sizes, before);
  if (threadIdx.x < kLanes) {
    const unsigned long long sum = sum_before(sums, 0, tile, all);
    if (threadIdx.x == 0) {
      tiles_before = sum;
      if (all) atomicAdd(counts + own.group, static_cast<unsigned long long>(all));
    }
  }
  __syncthreads();
  above.write(a, tiles_before, before, magnitudes);
}

// In place: a tile writes where tiles before it were, which have read their elements before they tell their sums.
__global__ void keep_above(float* list, int64_t n, uint32_t limit, Excess* state, unsigned long long* sums) {
  __shared__ unsigned long long tiles_before;
  const auto num_tiles = static_cast<int32_t>(tiles_of(n));
  const int32_t tile = next_tile(sums + num_tiles);
  Segment own;
  own.tile = static_cast<int64_t>(tile) * kTile;
  own.high = n < own.tile + kTile ? static_cast<int>(n - own.tile) : kTile;
  float a[kQuads][4];
  load_tile(list, own, a);
  const Above above(own, a, limit);
  if (above.least < kNothing) atomicMin(&state->least, above.least);
  uint32_t before[kQuads];
  const uint32_t all = sum_quads(above.sizes, before);
  if (threadIdx.x < kLanes) {
    const unsigned long long sum = sum_before(sums, 0, tile, all);
    if (threadIdx.x == 0) {
      tiles_before = sum;
      if (tile == num_tiles - 1) {
        const int64_t num = static_cast<int64_t>(sum) + all;
        state->bounds[0] = state->first_bucket[0] = state->first_piece[0] = 0;
        state->bounds[1] = static_cast<int32_t>(num);
        state->first_bucket[1] = 1;
        state->first_piece[1] = static_cast<int32_t>((num + kPiece - 1) / kPiece);
      }
    }
  }
  __syncthreads();
  above.write(a, tiles_before, before, list);
}

__global__ void sample_kernel(Segments cut, int64_t total, const float* signal, const float* grad, const int32_t* draws,
                              float* magnitudes) {
  const int64_t s = thread_index();
  if (s >= total) return;
  const int32_t g = group_of(cut.bounds, 0, cut.num - 1, s);
  const int32_t* bounds = cut.wanted + cut.num;
  const int64_t i = s - cut.bounds[g], num = cut.bounds[g + 1] - cut.bounds[g], n = bounds[g + 1] - bounds[g];
  const int64_t begin = i * n / num, length = (i + 1) * n / num - begin;
  const int64_t at = bounds[g] + begin + ((draws[s] & 0xffff) * length >> 16);
  magnitudes[s] = number(magnitude(grad ? signal[at] + grad[at] : signal[at]));
}

}  // namespace

void moments(const Cut& cut, float* signal, const float* grad, Moments* pieces, double* rows, Stream stream) {
  add_buckets(cut, OfMoments{}, signal, grad, pieces, WriteMoments{rows, cut.num_groups}, stream);
}

void found(const Search* searches, int64_t num, float* magnitudes, Stream stream) {
  if (num > 0) SAGE_LAUNCH(write_found, blocks_of(num), stream, searches, num, magnitudes);
}

void take_above(const Segments& cut, const float* signal, float* magnitudes, unsigned long long* counts,
                unsigned long long* sums, Stream stream) {
  if (cut.num_tiles > 0) SAGE_LAUNCH(take_above_tiles, cut.num_tiles, stream, cut, signal, magnitudes, counts, sums);
}

void excess(float* list, int64_t n, uint32_t limit, Excess* state, Moments* pieces, unsigned long long* sums, double* out,
            Stream stream) {
  if (n == 0) return;
  SAGE_LAUNCH(keep_above, tiles(n), stream, list, n, limit, state, sums);
  const auto num_pieces = static_cast<int32_t>((n + kPiece - 1) / kPiece);  // at most
  const Cut cut{state->bounds, state->first_bucket, state->first_piece, 1, 1, num_pieces, 0};
  add_buckets(cut, OfExcess{state}, list, nullptr, pieces, WriteExcess{state, out}, stream);
}

void sample(const Segments& cut, int64_t num, const float* signal, const float* grad, const int32_t* draws,
            float* magnitudes, Stream stream) {
  if (num > 0) SAGE_LAUNCH(sample_kernel, blocks_of(num), stream, cut, num, signal, grad, draws, magnitudes);
}

}  // namespace sage::cuda
