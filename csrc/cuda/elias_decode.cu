// Decodes Elias streams on a GPU. Where a code begins depends on all codes before it, so a stream is cut into parts, and a
// part into 128 bits for each thread: for every bit at which the first triple of those may begin, a thread finds where the
// first one behind them does. These tables are composed along the stream, and then all threads know where to begin.
#include "elias.cuh"

namespace sage::cuda {

namespace {

constexpr int kPartWords = kPartBits / 32;
constexpr uint8_t kStop = 254, kDead = 255;  // instead of a bit: the stream ends there, or there is no code
constexpr int kRow = kThreads + 4;           // entries of a table for one bit: rows begin in different banks

// Cuts the streams into parts. One block.
__global__ void cut_streams(Streams x, EliasTotals* totals) {
  unsigned long long words = 0, parts = 0;
  bool wrong = false;
  for (int32_t begin = 0; begin < x.num_groups; begin += kThreads) {
    const int32_t g = begin + static_cast<int32_t>(threadIdx.x);
    const int64_t own = g < x.num_groups ? x.bits[g] : 0;
    wrong |= own < 0;
    const auto bits = static_cast<unsigned long long>(own < 0 ? 0 : own);
    unsigned long long all_words, all_parts;
    const unsigned long long words_before = words + sum_threads((bits + 31) / 32, all_words);
    const unsigned long long parts_before = parts + sum_threads((bits + kPartBits - 1) / kPartBits, all_parts);
    words += all_words;
    parts += all_parts;
    if (g >= x.num_groups) continue;
    x.word_begins[g] = static_cast<int64_t>(words_before);
    x.parts[g] = static_cast<int64_t>(parts_before);
  }
  if (wrong) atomicAdd(&totals->refused, 1ull);
  if (threadIdx.x > 0) return;
  x.word_begins[x.num_groups] = static_cast<int64_t>(words);
  x.parts[x.num_groups] = static_cast<int64_t>(parts);
  if (words != static_cast<unsigned long long>(x.num_words)) atomicAdd(&totals->refused, 1ull);
}

// The words of a part and a little more, and for each bit of a thread where the next triple behind its 128 bits begins.
struct Part {
  int32_t group;
  int64_t number;        // of the part in its group
  int64_t num_bits;      // of the group's stream that are not before the part
  const uint32_t* here;  // the words, in shared memory
  uint8_t* exits;        // in shared memory

  // The next 64 bits from a bit of the part.
  __device__ __forceinline__ unsigned long long bits_from(int at) const {
    const int i = at / 32, shift = at % 32;
    const unsigned long long two = static_cast<unsigned long long>(here[i]) << 32 | here[i + 1];
    return two << shift | here[i + 2] >> 1 >> (31 - shift);
  }

  // Returns the bits of the triple from a bit; 0 if it is not one, or not all of it is in the stream.
  __device__ __forceinline__ int triple(int at) const {
    const unsigned long long bits = bits_from(at);
    const Code gap(bits), magnitude(bits << gap.width << 1);
    const int width = gap.width + 1 + magnitude.width;
    return gap.width == 0 || magnitude.width == 0 || at + width > num_bits ? 0 : width;
  }

  // All threads must call it.
  __device__ __forceinline__ Part(const Streams& x, int64_t part, uint32_t* words, uint8_t* table) : here(words), exits(table) {
    int32_t low = 0, high = x.num_groups - 1;
    while (low < high) {  // the last that begins at or before it
      const int32_t middle = low + (high - low + 1) / 2;
      if (x.parts[middle] <= part)
        low = middle;
      else
        high = middle - 1;
    }
    group = low;
    number = part - x.parts[group];
    num_bits = x.bits[group] - number * kPartBits;
    const int64_t begin = x.word_begins[group] + number * kPartWords;
    for (int i = threadIdx.x; i < kPartWords + 5; i += kThreads) words[i] = begin + i < x.num_words ? x.words[begin + i] : 0;
    __syncthreads();
    const int first = static_cast<int>(threadIdx.x) * kSubBits;
    for (int bit = kSubBits - 1; bit >= 0; --bit) {
      const int width = first + bit < num_bits ? triple(first + bit) : 0, next = bit + width;
      uint8_t exit = kDead;
      if (width > 0)
        exit = first + next == num_bits ? kStop : next >= kSubBits ? static_cast<uint8_t>(next - kSubBits) : table[next * kRow + threadIdx.x];
      table[bit * kRow + threadIdx.x] = exit;
    }
    __syncthreads();
  }
};

__global__ void find_exits(Streams x, const EliasTotals* totals) {
  __shared__ uint32_t words[kPartWords + 5];
  __shared__ uint8_t table[kSubBits * kRow];
  const int64_t part = blockIdx.x;
  if (totals->refused || part >= x.parts[x.num_groups]) return;
  const Part own(x, part, words, table);
  if (threadIdx.x >= kEntries) return;
  auto state = static_cast<uint8_t>(threadIdx.x);
  for (int sub = 0; sub < kThreads && state < kSubBits; ++sub) state = table[state * kRow + sub];
  x.exits[part * kEntries + threadIdx.x] = state;
}

// Each block follows one stream from part to part.
__global__ void follow_streams(Streams x, EliasTotals* totals) {
  constexpr int kAhead = 128;  // parts whose tables are read at once
  __shared__ uint8_t exits[kAhead * kEntries];
  const auto group = static_cast<int32_t>(blockIdx.x);
  if (totals->refused) return;
  const int64_t begin = x.parts[group], end = x.parts[group + 1];
  uint8_t state = 0;
  for (int64_t part = begin; part < end; part += kAhead) {
    const int num = static_cast<int>(end - part < kAhead ? end - part : kAhead);
    for (int i = threadIdx.x; i < num * kEntries; i += kThreads) exits[i] = x.exits[part * kEntries + i];
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 0; i < num; ++i) {
        x.entries[part + i] = state;
        if (state < kEntries) state = exits[i * kEntries + state];
      }
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && begin < end && state != kStop) atomicAdd(&totals->wrong, 1ull);
}

template <class T>
__global__ void decode_parts(Streams x, T* levels, EliasTotals* totals) {
  __shared__ uint32_t words[kPartWords + 5];
  __shared__ uint8_t table[kSubBits * kRow], entries[kThreads];
  __shared__ unsigned long long gaps_before;
  if (totals->refused) return;
  const int64_t part = next_tile(x.sums + x.most_parts);
  if (part >= x.parts[x.num_groups]) return;  // no part behind it waits
  const Part own(x, part, words, table);
  if (threadIdx.x == 0) {
    uint8_t state = x.entries[part];
    for (int sub = 0; sub < kThreads; ++sub) {
      entries[sub] = state;
      if (state < kSubBits) state = table[state * kRow + sub];
    }
  }
  __syncthreads();
  const int first = static_cast<int>(threadIdx.x) * kSubBits, entry = entries[threadIdx.x];
  unsigned long long gaps = 0, all;
  const auto each = [&](const auto& take) {
    for (int at = first + entry; entry < kSubBits && at < first + kSubBits && at < own.num_bits;) {
      const unsigned long long bits = own.bits_from(at);
      const Code gap(bits);
      const int width = own.triple(at);
      if (width == 0) break;
      take(at, bits, gap);
      at += width;
    }
  };
  each([&](int, unsigned long long bits, const Code& gap) { gaps += gap.value(bits); });
  const unsigned long long before = sum_threads(gaps, all);
  if (threadIdx.x < kLanes) {
    const auto begin = static_cast<int32_t>(x.parts[own.group]);
    const unsigned long long found = sum_before(x.sums, begin, static_cast<int32_t>(part), all);
    if (threadIdx.x == 0) gaps_before = found;
  }
  __syncthreads();
  // Behind the last level; a sum of gaps is below 2^62.
  auto behind = static_cast<unsigned long long>(x.bounds[own.group]) + gaps_before + before;
  const auto stop = static_cast<unsigned long long>(x.bounds[own.group + 1]);
  bool wrong = false;
  each([&](int at, unsigned long long bits, const Code& gap) {
    behind += gap.value(bits);
    const unsigned long long rest = own.bits_from(at + gap.width);
    const uint32_t size = Code(rest << 1).value(rest << 1);
    const auto level = static_cast<int64_t>(rest >> 63 ? -static_cast<int64_t>(size) : static_cast<int64_t>(size));
    const bool fits = sizeof(T) > 1 || (level >= -128 && level <= 127);
    wrong |= behind > stop || !fits;
    if (behind <= stop && fits) levels[behind - 1] = static_cast<T>(level);
  });
  if (wrong) atomicAdd(&totals->wrong, 1ull);
}

}  // namespace

void decode_streams(const Streams& streams, float* levels, int8_t* bytes, EliasTotals* totals, Stream stream) {
  SAGE_LAUNCH(cut_streams, 1, stream, streams, totals);
  if (streams.num_groups == 0 || streams.num_words == 0) return;
  SAGE_LAUNCH(find_exits, streams.most_parts, stream, streams, totals);
  SAGE_LAUNCH(follow_streams, streams.num_groups, stream, streams, totals);
  if (bytes)
    SAGE_LAUNCH(decode_parts<int8_t>, streams.most_parts, stream, streams, bytes, totals);
  else
    SAGE_LAUNCH(decode_parts<float>, streams.most_parts, stream, streams, levels, totals);
}

}  // namespace sage::cuda
