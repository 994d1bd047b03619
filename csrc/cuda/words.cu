// The two formats of 32-bit words of signs that other systems use, as in cpu/words.h. A bit is set in the words if the element is
// negative, which is where it is not set in the bytes.
#include "groups.cuh"

namespace sage::cuda {

namespace {

// Returns the 32 bits from bit `first` of num_bytes bytes; bits beyond the bytes are 0.
__device__ __forceinline__ uint32_t bits_at(const uint8_t* bytes, int64_t num_bytes, int64_t first) {
  const int64_t byte = first / 8;
  unsigned long long held = 0;
  SAGE_UNROLL
  for (int k = 0; k < 5; ++k) held |= byte + k < num_bytes ? static_cast<unsigned long long>(bytes[byte + k]) << 8 * k : 0;
  return static_cast<uint32_t>(held >> first % 8);
}

__device__ __forceinline__ uint32_t mask_of(int64_t num) { return num >= 32 ? ~0u : num > 0 ? (1u << num) - 1 : 0; }

// Writes the bits of the elements [i, i + 32) of n, i being a multiple of 32.
__device__ __forceinline__ void store_bits(uint8_t* bytes, int64_t i, int64_t n, uint32_t set) {
  uint8_t* at = bytes + i / 8;
  if (i + 32 <= n && reinterpret_cast<uintptr_t>(at) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(at) = set;
    return;
  }
  for (int k = 0; 8 * k < 32 && i + 8 * k < n; ++k) at[k] = static_cast<uint8_t>(set >> 8 * k);
}

// Each thread writes a word, which is a bucket of the cut.
__global__ void words_by_group(Cut cut, const uint8_t* bytes, int64_t num_bytes, uint32_t* words) {
  const int64_t number = thread_index();
  if (number >= cut.num_buckets) return;
  const int32_t g = group_of(cut.first_bucket, 0, cut.num_groups - 1, number);
  const int64_t first = cut.bounds[g] + 32 * (number - cut.first_bucket[g]);
  words[number] = __brev(~bits_at(bytes, num_bytes, first) & mask_of(cut.bounds[g + 1] - first));
}

// Each thread writes the bits of 32 elements of a payload, which may be of several groups.
__global__ void bits_by_group(Cut cut, const uint32_t* words, int64_t n, int64_t num_payloads, uint8_t* bytes) {
  const int64_t each = (n + 31) / 32, row = thread_index() / each, begin = 32 * (thread_index() % each);
  if (row >= num_payloads) return;
  const int64_t end = begin + 32 < n ? begin + 32 : n;
  words += row * cut.num_buckets;
  int32_t g = group_of(cut.bounds, 0, cut.num_groups - 1, begin);
  uint32_t set = 0;
  for (int64_t i = begin; i < end;) {
    while (cut.bounds[g + 1] <= i) ++g;
    const int64_t in_group = i - cut.bounds[g], stop = cut.bounds[g + 1] < end ? cut.bounds[g + 1] : end;
    const int64_t word = cut.first_bucket[g] + in_group / 32;
    const int shift = static_cast<int>(in_group % 32), num = static_cast<int>(stop - i);
    uint32_t own = ~__brev(words[word]) >> shift;
    if (shift + num > 32) own |= ~__brev(words[word + 1]) << (32 - shift);
    set |= (own & mask_of(num)) << (i - begin);
    i = stop;
  }
  store_bits(bytes + row * ((n + 7) / 8), begin, n, set);
}

// Each warp transposes 32 rows of 32 bits: lane l reads those of row 31 - l, so that a ballot over a column is its word.
__global__ void words_by_column(const uint8_t* bytes, int64_t n, int64_t num, uint32_t* words) {
  const int lane = threadIdx.x % kLanes;
  const int64_t column = thread_index() - lane, first = (31 - lane) * num + column;
  const int64_t left = num - column < n - first ? num - column : n - first;
  const uint32_t negative = left > 0 ? ~bits_at(bytes, (n + 7) / 8, first) & mask_of(left) : 0;
  uint32_t own = 0;
  for (int c = 0; c < kLanes; ++c) {
    const uint32_t word = __ballot_sync(kWholeWarp, negative >> c & 1);
    own = lane == c ? word : own;
  }
  if (column + lane < num) words[column + lane] = own;
}

// A block writes the bits of kColumns columns of a payload: of the elements from the first multiple of 32 in these columns of each
// row on. The words are read 32 times, but by the same block.
constexpr int64_t kColumns = 32 * kLanes;

__global__ void bits_by_column(const uint32_t* words, int64_t n, int64_t num, int64_t chunks, uint8_t* bytes) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t payload = blockIdx.x / chunks, column = blockIdx.x % chunks * kColumns;
  words += payload * num;
  bytes += payload * ((n + 7) / 8);
  for (int64_t row = warp; row < 32; row += kWarps) {
    const int64_t begin = (row * num + column + 31) / 32 * 32;
    int64_t end = row * num + (column + kColumns < num ? column + kColumns : num);
    end = end < n ? end : n;
    uint32_t own = 0;
    for (int k = 0; begin + 32 * k < end; ++k) {  // at most 32 times, and as often in all lanes
      const int64_t i = begin + 32 * k + lane;
      int64_t at = i - row * num, bit = 31 - row;
      for (; at >= num; at -= num) --bit;
      const uint32_t set = __ballot_sync(kWholeWarp, i < n && !(words[i < n ? at : 0] >> (i < n ? bit : 0) & 1));
      own = lane == k ? set : own;
    }
    if (begin + 32 * lane < end) store_bits(bytes, begin + 32 * lane, n, own);
  }
}

}  // namespace

void sign_words(const Cut& cut, const uint8_t* bytes, int64_t n, uint32_t* words, Stream stream) {
  if (n > 0) SAGE_LAUNCH(words_by_group, blocks_of(cut.num_buckets), stream, cut, bytes, (n + 7) / 8, words);
}

void sign_bytes(const Cut& cut, const uint32_t* words, int64_t n, int64_t num_payloads, uint8_t* bytes, Stream stream) {
  const int64_t all = (n + 31) / 32 * num_payloads;
  if (all > 0) SAGE_LAUNCH(bits_by_group, blocks_of(all), stream, cut, words, n, num_payloads, bytes);
}

void sign_words_by_column(const uint8_t* bytes, int64_t n, uint32_t* words, Stream stream) {
  const int64_t num = (n + 31) / 32;
  if (n > 0) SAGE_LAUNCH(words_by_column, blocks_of(num), stream, bytes, n, num, words);
}

void sign_bytes_by_column(const uint32_t* words, int64_t n, int64_t num_payloads, uint8_t* bytes, Stream stream) {
  const int64_t num = (n + 31) / 32, chunks = (num + kColumns - 1) / kColumns;
  if (chunks * num_payloads > 0)
    SAGE_LAUNCH(bits_by_column, chunks * num_payloads, stream, words, n, num, chunks, bytes);
}

}  // namespace sage::cuda
