// AdaComp's codes on a GPU. Entries have 1, 2 or 4 bytes, and those of narrow bins come before those of wide bins; where one
// begins depends on all counts, or all entries, before it: sums over tiles by look-back.
#include "bins.cuh"
#include "lookback.cuh"
#include "threads.cuh"

namespace sage::cuda {

namespace {

constexpr unsigned long long kLow = 0x7fffffffu;  // two sums of 31 bits are in one word

// A tile of bins: each thread has successive ones.
__global__ void place_bins(Layers layers, FromBins taken, int32_t* elements_before, int32_t* entries_before,
                           unsigned long long* sums, BinTotals* totals) {
  __shared__ unsigned long long tiles_before;
  const int32_t number = next_tile(sums + tiles_of(layers.num_bins));
  const int64_t first = static_cast<int64_t>(number) * kTile + static_cast<int64_t>(threadIdx.x) * kItems;
  int32_t counts[kItems];
  unsigned long long own = 0, sum = 0;  // packed, and the sum of the counts, which does not overflow
  bool wrong = false;
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    counts[c] = first + c < layers.num_bins ? taken.counts[first + c] : 0;
    wrong |= counts[c] < 0 || counts[c] > taken.num;
    if (counts[c] < 0 || counts[c] > taken.num) counts[c] = 0;
    if (first + c >= layers.num_bins) continue;
    sum += static_cast<unsigned long long>(counts[c]);
    own += static_cast<unsigned long long>(counts[c]) | static_cast<unsigned long long>(counts[c] > 1 ? counts[c] : 1) << 31;
  }
  if (wrong) atomicAdd(&totals->wrong, 1ull);
  unsigned long long all;
  sum_threads(sum, all);
  if (threadIdx.x == 0) atomicAdd(&totals->taken, all);
  unsigned long long before = sum_threads(own, all);
  if (threadIdx.x < kLanes) {
    const unsigned long long found = sum_before(sums, 0, number, all);
    if (threadIdx.x == 0) {
      tiles_before = found;
      atomicAdd(&totals->entries, all >> 31);
    }
  }
  __syncthreads();
  before += tiles_before;
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    if (first + c >= layers.num_bins) continue;
    elements_before[first + c] = static_cast<int32_t>(before & kLow);
    entries_before[first + c] = static_cast<int32_t>(before >> 31 & kLow);
    before += static_cast<unsigned long long>(counts[c]) | static_cast<unsigned long long>(counts[c] > 1 ? counts[c] : 1) << 31;
  }
}

// The first block finds where the entries of each layer begin; the others examine the elements.
__global__ void place_layers(Layers layers, FromBins taken, const int32_t* elements_before, const int32_t* entries_before,
                             int64_t* bytes_before, BinTotals* totals) {
  if (blockIdx.x > 0) {
    const int64_t k = thread_index() - kThreads;
    if (k >= taken.num) return;
    const int32_t at = taken.indices[k];
    bool inside = at >= 0 && at < layers.begins[layers.num];
    if (inside) {
      const Bin bin(layers, 0, layers.num - 1, at);
      const int64_t before = elements_before[bin.number];
      inside = before <= k && k < before + taken.counts[bin.number];
    }
    if (!inside) atomicAdd(&totals->wrong, 1ull);
    return;
  }
  unsigned long long bytes = 0;
  for (int32_t begin = 0; begin < layers.num; begin += kThreads) {
    const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
    unsigned long long own = 0, all;
    int32_t layer = 0;
    if (i < layers.num) {
      layer = layers.order[i];
      const int32_t first = layers.first_bin[layer], last = layers.first_bin[layer + 1];
      const auto end = last < layers.num_bins ? static_cast<unsigned long long>(entries_before[last]) : totals->entries;
      const int width = i < layers.starts[1] ? 1 : i < layers.starts[2] ? 2 : 4;
      if (first < last) own = (end - static_cast<unsigned long long>(entries_before[first])) * width;
    }
    const unsigned long long before = bytes + sum_threads(own, all);
    if (i < layers.num) bytes_before[layer] = static_cast<int64_t>(before);
    bytes += all;
  }
  if (threadIdx.x == 0) totals->bytes = bytes;
}

__device__ __forceinline__ void write_entry(uint8_t* at, int64_t length, uint32_t entry) {
  const int width = length < 1 << 6 ? 1 : length < 1 << 14 ? 2 : 4;
  for (int byte = 0; byte < width; ++byte) at[byte] = static_cast<uint8_t>(entry >> (8 * byte));
}

// Each thread writes the entry of an element, and that of a bin from which nothing is taken.
__global__ void encode_kernel(Layers layers, FromBins taken, const float* scales, const int32_t* elements_before,
                              const int32_t* entries_before, const int64_t* bytes_before, float* residual, uint8_t* bytes) {
  const int64_t i = thread_index();
  const auto place = [&](int32_t layer, int32_t bin, int64_t among) {
    const int64_t length = layers.lengths[layer], first = entries_before[layers.first_bin[layer]];
    const int width = length < 1 << 6 ? 1 : length < 1 << 14 ? 2 : 4;
    return bytes + bytes_before[layer] + (entries_before[bin] - first + among) * width;
  };
  if (i < layers.num_bins && taken.counts[i] == 0) {
    const int32_t bin = static_cast<int32_t>(i), layer = group_of(layers.first_bin, 0, layers.num - 1, i);
    write_entry(place(layer, bin, 0), layers.lengths[layer], ~1u);
  }
  if (i >= taken.num) return;
  const int32_t at = taken.indices[i];
  const Bin bin(layers, 0, layers.num - 1, at);
  const int64_t among = i - elements_before[bin.number];
  const float value = taken.values[i], scale = scales[bin.layer];
  const uint32_t is_last = among == taken.counts[bin.number] - 1;
  const auto entry = static_cast<uint32_t>(at - bin.begin) << 2 | is_last << 1 | (value < 0);
  write_entry(place(bin.layer, bin.number, among), layers.lengths[bin.layer], entry);
  if (residual) residual[at] = finite_or_zero(value - (value < 0 ? -scale : scale));
}

// The bins of one width, and the first and last layer of it in the order of the widths.
struct WidthBins {
  int32_t num, low, high;
};

// Decodes the entries of one width, to the front of what the widths before it have left.
__global__ void decode_width(Layers layers, int width, WidthBins own, const uint8_t* bytes, int64_t num_bytes, const float* scales,
                             float* values, int32_t* indices, unsigned long long* sums, BinTotals* totals) {
  __shared__ unsigned long long tiles_before;
  const unsigned long long stopped = width == 0 ? 1 : totals->stopped[width];
  if (stopped == 0) return;
  const int size = 1 << width;
  const uint32_t nowhere = (1u << (8 * size - 2)) - 1;
  const int64_t from = static_cast<int64_t>(stopped) - 1, elements = static_cast<int64_t>(totals->found[width]);
  const int64_t num = (num_bytes - from) / size;
  const int32_t number = next_tile(sums + tiles_of(num_bytes));
  const int64_t begin = static_cast<int64_t>(number) * kTile;
  if (begin >= num) return;  // no tile behind it waits
  uint32_t entries[kItems], lasts[kItems], found[kItems];
  bool is_last[kItems], is_taken[kItems];
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    const int64_t e = begin + c * kThreads + threadIdx.x;
    entries[c] = 0;
    if (e < num)
      for (int byte = 0; byte < size; ++byte)
        entries[c] |= static_cast<uint32_t>(bytes[from + e * size + byte]) << (8 * byte);
    is_last[c] = e < num && (entries[c] >> 1 & 1);
    is_taken[c] = e < num && entries[c] >> 2 != nowhere;
  }
  const unsigned long long num_lasts = rank_flags(is_last, lasts), num_found = rank_flags(is_taken, found);
  if (threadIdx.x < kLanes) {
    const unsigned long long before = sum_before(sums, 0, number, num_lasts | num_found << 31);
    if (threadIdx.x == 0) tiles_before = before;
  }
  __syncthreads();
  SAGE_UNROLL
  for (int c = 0; c < kItems; ++c) {
    const int64_t e = begin + c * kThreads + threadIdx.x;
    const int64_t bin = static_cast<int64_t>(tiles_before & kLow) + lasts[c];
    if (e >= num || bin >= own.num) continue;  // of another width
    const int64_t to = elements + static_cast<int64_t>(tiles_before >> 31) + found[c];
    const int32_t i = group_of(layers.first_of_width, own.low, own.high, bin);
    const int32_t layer = layers.order[i];
    const int64_t first = layers.begins[layer], length = layers.lengths[layer];
    const int64_t place = entries[c] >> 2, at = first + (bin - layers.first_of_width[i]) * length + place;
    if (is_taken[c]) {
      if (place >= length || at >= layers.begins[layer + 1]) atomicAdd(&totals->wrong, 1ull);
      indices[to] = static_cast<int32_t>(at);
      values[to] = entries[c] & 1 ? -scales[layer] : scales[layer];
    }
    if (is_last[c] && bin == own.num - 1) {
      totals->found[width + 1] = static_cast<unsigned long long>(to) + is_taken[c];
      totals->stopped[width + 1] = static_cast<unsigned long long>(from + (e + 1) * size) + 1;
    }
  }
}

__global__ void pass_width(int width, BinTotals* totals) {
  if (threadIdx.x > 0) return;
  totals->found[width + 1] = totals->found[width];
  totals->stopped[width + 1] = width == 0 ? 1 : totals->stopped[width];
}

// Returns the first of [begin, end) whose index is not below `least`.
__device__ __forceinline__ int64_t first_from(const int32_t* indices, int64_t begin, int64_t end, int32_t least) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (indices[middle] < least)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

__global__ void place_decoded(Layers layers, const int32_t* indices, int32_t* shifts, const BinTotals* totals) {
  unsigned long long before = 0;
  for (int32_t begin = 0; begin < layers.num; begin += kThreads) {
    const int32_t layer = begin + static_cast<int32_t>(threadIdx.x);
    unsigned long long own = 0, all;
    int64_t first = 0;
    if (layer < layers.num) {
      const int64_t length = layers.lengths[layer];
      const int width = length < 1 << 6 ? 0 : length < 1 << 14 ? 1 : 2;
      const auto low = static_cast<int64_t>(totals->found[width]), high = static_cast<int64_t>(totals->found[width + 1]);
      first = first_from(indices, low, high, layers.begins[layer]);
      own = static_cast<unsigned long long>(first_from(indices, first, high, layers.begins[layer + 1]) - first);
    }
    const unsigned long long at = before + sum_threads(own, all);
    if (layer < layers.num) shifts[layer] = static_cast<int32_t>(static_cast<int64_t>(at) - first);
    before += all;
  }
}

__global__ void order_kernel(Layers layers, int64_t num, const float* values, const int32_t* indices, const int32_t* shifts,
                             float* out_values, int32_t* out_indices) {
  const int64_t i = thread_index();
  if (i >= num) return;
  const int32_t at = indices[i];
  const int64_t to = i + shifts[group_of(layers.begins, 0, layers.num - 1, at)];
  out_values[to] = values[i];
  out_indices[to] = at;
}

}  // namespace

void place_entries(const Layers& layers, const FromBins& taken, int32_t* elements_before, int32_t* entries_before,
                   int64_t* bytes_before, unsigned long long* sums, BinTotals* totals, Stream stream) {
  if (layers.num_bins > 0)
    SAGE_LAUNCH(place_bins, tiles(layers.num_bins), stream, layers, taken, elements_before, entries_before, sums, totals);
  SAGE_LAUNCH(place_layers, 1 + blocks_of(taken.num), stream, layers, taken, elements_before, entries_before, bytes_before,
              totals);
}

void encode_bins(const Layers& layers, const FromBins& taken, const float* scales, const int32_t* elements_before,
                 const int32_t* entries_before, const int64_t* bytes_before, float* residual, uint8_t* bytes,
                 Stream stream) {
  const int64_t num = taken.num > layers.num_bins ? taken.num : layers.num_bins;
  if (num > 0)
    SAGE_LAUNCH(encode_kernel, blocks_of(num), stream, layers, taken, scales, elements_before, entries_before, bytes_before,
                residual, bytes);
}

void decode_entries(const Layers& layers, const uint8_t* bytes, int64_t num_bytes, const float* scales, float* values,
                    int32_t* indices, int32_t* shifts, unsigned long long* sums, BinTotals* totals, Stream stream) {
  for (int width = 0; width < kWidths; ++width) {
    const WidthBins own{layers.bins[width], layers.starts[width], layers.starts[width + 1] - 1};
    if (layers.bins[width] == 0)
      SAGE_LAUNCH(pass_width, 1, stream, width, totals);
    else if (num_bytes > 0)
      SAGE_LAUNCH(decode_width, tiles((num_bytes + (1 << width) - 1) >> width), stream, layers, width, own, bytes, num_bytes,
                  scales, values, indices, sums + width * (tiles(num_bytes) + 1), totals);
  }
  SAGE_LAUNCH(place_decoded, 1, stream, layers, indices, shifts, totals);
}

void order_elements(const Layers& layers, int64_t num, const float* values, const int32_t* indices, const int32_t* shifts,
                    float* out_values, int32_t* out_indices, Stream stream) {
  if (num > 0) SAGE_LAUNCH(order_kernel, blocks_of(num), stream, layers, num, values, indices, shifts, out_values, out_indices);
}

}  // namespace sage::cuda
