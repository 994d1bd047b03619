// The functions that launch the CUDA kernels, without torch: `x.cu` defines them, `x.cpp` wraps them as torch ops, and
// the emulated tests also call them. Pointers are to device memory. No function waits for the device.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "coding.h"
#include "cut.h"
#include "draw.h"
#include "integers.h"

#if defined(__CUDACC__) || defined(SAGE_CUDA_BINDING)
#include <cuda_runtime_api.h>
using Stream = cudaStream_t;
#else
using Stream = const void*;
#endif

namespace sage::cuda {

constexpr int kThreads = 256;
constexpr int kItems = 16;  // elements of a thread, loaded before the first is used: that many reads are in flight
constexpr int kTile = kThreads * kItems;
inline int64_t tiles(int64_t n) { return (n + kTile - 1) / kTile; }

constexpr int kGroup = 64, kBinShift = 17;  // of a histogram, as on the CPU
constexpr int kBins = 1 << (31 - kBinShift);

// Returns the smallest magnitude for which `not |x| < threshold` holds; 0 if the threshold is 0, negative or NaN.
inline uint32_t limit_of(double threshold) {
  const float rounded = static_cast<float>(threshold);
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return rounded > 0 ? bits : 0;
}

struct Pass {
  float* signal;
  float* grad;  // added, where there is one
  int64_t n;
  bool keep;       // whether 0 is left where an element was taken
  bool clear;      // whether 0 is left in the gradient
  int32_t* bins;   // counts of magnitudes in every `every`-th group of 64, where there are bins
  int64_t every;
};

// Adds the number of magnitudes at or above a limit to the count, or the histogram of the magnitudes to the bins.
void count_above(const float* x, int64_t n, uint32_t limit, unsigned long long* count, Stream stream);
void count_magnitudes(const float* x, int64_t n, int32_t* bins, int64_t every, Stream stream);

// The start of each rank's elements, and the end. It is passed by value as a kernel argument, which needs no copy to the
// device.
constexpr int kMostRanks = 512;
struct Starts {
  int32_t num_ranks;
  int32_t at[kMostRanks + 1];
};

// Computes out = Σ_w scatter(values_w, at_w) / W; each rank's indices must ascend.
void scatter_mean(const float* values, const int32_t* at, const Starts& starts, float* out, int64_t n, Stream stream);
void clear(float* out, int64_t n, const int32_t* at, int64_t num, Stream stream);

// Computes signal += gradient, where there is a gradient; then writes the values of `num` elements and, with `keep`, leaves 0
// there. The value of an index outside of the vector is NaN.
void take_at(float* signal, const float* grad, int64_t n, const int32_t* at, int64_t num, bool keep, float* values,
             Stream stream);

// A bitmap of n elements: bit i % 32 of word i / 32.
constexpr int64_t kBitTile = 32 * 4 * kThreads;  // bits that a block counts
inline int64_t bit_tiles(int64_t n) { return (n + kBitTile - 1) / kBitTile; }
inline int64_t bitmap_words(int64_t n) { return bit_tiles(n) * (kBitTile / 32); }
struct Bitmap {
  uint32_t* words;  // at a multiple of 16 bytes
  int64_t n;
  int32_t* before;  // of each word: bits that are set before it; may be null
  int32_t* counts;  // of each tile, and one more
};

// `count_bits` stores the number of bits in the last of the counts, `list_bits` behind it writes their indices, ascending, and
// the numbers before each word. Indices outside of the vector are not set; their place is -1.
void zero(uint32_t* words, int64_t num, Stream stream);  // a multiple of 4 words
void set_bits(const Bitmap& x, const int32_t* at, int64_t num, Stream stream);
void count_bits(const Bitmap& x, Stream stream);
void list_bits(const Bitmap& x, int32_t* indices, Stream stream);
void find_places(const Bitmap& x, const int32_t* at, int64_t num, int32_t* places, Stream stream);
void find_members(const Bitmap& x, const int32_t* at, int64_t num, uint8_t* among, Stream stream);

// Sets the bits of random elements of each group.
void draw(const Draw& x, const DrawTable& table, Stream stream);

void pack(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes, Stream stream);
void unpack(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes, Stream stream);

// A rank's share of the mean as bits of fp16 or bf16: share = cast((residual + grad) / world_size); the error of the cast is
// left in the residual, where there is one. As in cpu/cast.h.
struct Share {
  const float* grad;
  float* residual;
  uint16_t* share;
  int64_t world_size;
};

void cast_share(bool fp16, const Share& x, int64_t n, Stream stream);
// out = cast(sum of rows of n elements, in float32 in their order); out is not in the rows.
void sum_casts(bool fp16, const uint16_t* rows, int64_t num_rows, uint16_t* out, int64_t n, Stream stream);
void widen(bool fp16, const uint16_t* x, float* out, int64_t n, Stream stream);

// Writes the 16 random bits of the elements [first, first + n) of a vector.
void random_bits(uint64_t key, int64_t first, int64_t n, int32_t* out, Stream stream);

// Copies a cut's table to the device, 960 words in each launch.
void upload(const std::vector<int32_t>& words, int32_t* out, Stream stream);

// What is computed for each group, and its results: as in cpu/sums.h.
enum class Kind : int { absolute, sides, squares, largest };
struct Statistic {
  double sum, other;
  uint32_t largest, below;
};

// Computes signal += grad, where there is a gradient, and four rows of a statistic of each group: sum, other, largest,
// below. `pieces` has room for twice the pieces of the cut.
void statistics(Kind kind, const Cut& cut, float* signal, const float* grad, Statistic* pieces, double* rows,
                Stream stream);

// The mean of several payloads of signs. Row w of low and high has a number for each group, row w of the bits num_bytes
// bytes.
struct SignMean {
  float* out;
  int64_t n;
  const float *low, *high;
  const uint8_t* bits;
  int64_t num_bytes, num_payloads, divisor;
  bool added;  // to what `out` holds
  bool votes;  // the sign of the sum instead of the sum / divisor
};

// Both of groups without buckets.
void sign_bits(const Cut& cut, float* signal, int64_t n, const float* low, const float* high, bool keep, uint8_t* bytes,
               Stream stream);
void mean_signs(const Cut& cut, const SignMean& x, Stream stream);

// The signs of a momentum, m = beta·m + (1 − beta)·signal, in which what is not finite counts as 0, rounded as in
// cpu/signs.h. The largest magnitude of the signal replaces `largest`, if it is larger.
struct MomentumSigns {
  float* momentum;
  const float* signal;
  float beta, rest;  // beta, and 1 − beta
  uint8_t* bits;
  uint32_t* largest;
};
void momentum_signs(const MomentumSigns& x, int64_t n, Stream stream);

// Words of 32 signs, first sign highest, from the bytes of signs, and the bytes from the words of each payload. The cut has
// buckets of 32 elements: each is a word. By column, element r·V + j is bit 31 - r of word j, of V words.
void sign_words(const Cut& cut, const uint8_t* bytes, int64_t n, uint32_t* words, Stream stream);
void sign_bytes(const Cut& cut, const uint32_t* words, int64_t n, int64_t num_payloads, uint8_t* bytes, Stream stream);
void sign_words_by_column(const uint8_t* bytes, int64_t n, uint32_t* words, Stream stream);
void sign_bytes_by_column(const uint32_t* words, int64_t n, int64_t num_payloads, uint8_t* bytes, Stream stream);

// Computes signal -= sent; what is not finite becomes 0.
void keep_error(float* signal, const float* sent, int64_t n, Stream stream);

// out = left·right, of rows × rank and rank × columns elements; signal, where there is one, -= out, and what is not finite
// becomes 0.
struct Product {
  const float *left, *right;
  int64_t rows, rank, columns;
  float *out, *signal;
};
void write_product(const Product& x, Stream stream);

// The randomised Hadamard transform of each bucket, or its inverse, as in cpu/hadamard.h. The cut has buckets of a power of
// two of elements, from 16 to kMostTransformed.
struct Hadamard {
  float* x;
  uint64_t key;  // of the signs
  bool inverse;
};
constexpr int kMostTransformed = 8192;
void hadamard(const Cut& cut, const Hadamard& x, Stream stream);

// The largest elements of each chunk and their positions, as in cpu/chunks.h, in one launch. The positions of a chunk that
// is not in the vector, or from which more elements are to be taken than it has, are -1, and the values NaN.
constexpr int kMostInChunk = 4096, kRowInChunk = 64;  // elements
struct Chunk {
  int32_t first, stride, length, start;
};
struct Chunks {
  const float* x;
  int64_t n;
  const Chunk* chunks;
  int64_t num_chunks;
  int32_t num;
  float* values;
  int32_t* positions;
};
void largest_in_chunks(const Chunks& x, Stream stream);

// Quantisation to integers of a table at random, sums of such integers in planes, and the values of sums. One launch each.
void quantise_integers(const IntegerTable& table, const IntegerRows& x, int64_t shares, Stream stream);
void sum_integers(const IntegerTable& table, const IntegerSums& x, Stream stream);
void average_integers(const IntegerMeans& x, int64_t shares, Stream stream);

// Computes signal += gradient, where there is a gradient, and the scale of each bucket: its Euclidean norm, or its largest
// magnitude.
void scales(bool euclidean, const Cut& cut, float* signal, const float* grad, Statistic* pieces, float* found,
            Stream stream);

struct Quantisation {
  Coding coding;
  float* signal;
  int64_t n;
  const float* scales;  // of each bucket
  const float* limits;  // of each bucket, where larger magnitudes are clipped to it
  uint64_t key;         // of the random bits
  Positions positions;  // of the elements, for their random bits
  bool keep;            // whether the error is left in the signal
  uint8_t* bytes;
};

// The mean of several payloads. Row w of the scales has a number for each bucket, row w of the bytes num_bytes bytes.
struct Average {
  Coding coding;
  float* out;
  int64_t n;
  const float* scales;
  const uint8_t* bytes;
  int64_t num_bytes, num_payloads, divisor;
  bool added;  // to what `out` holds
};

void quantise(const Cut& cut, const Quantisation& x, Stream stream);
void average(const Cut& cut, const Average& x, Stream stream);

// signal = (signal + grad + Σ_w values_w) / divisor, its codes of 8 bits, and error · divisor, as in cpu/blocks.h. Row w of
// the scales has a number for each bucket, row w of the payloads n codes.
struct Blocks {
  Coding coding;
  float* signal;
  const float* grad;  // where there is one
  int64_t n;
  const float* scales;
  const uint8_t* payloads;
  int64_t num_payloads, divisor;
  bool keep;  // whether the error is left in the signal; without it there are neither gradient nor payloads
  uint8_t* bytes;
  float* found;  // the scale of each bucket: its largest magnitude
};

// One launch. `longest` is the number of elements of the largest bucket, at most kMostInBlock.
constexpr int64_t kMostInBlock = 16384;
void quantise_blocks(const Cut& cut, int64_t longest, const Blocks& x, Stream stream);

// Computes signal += grad, where there is a gradient, and the largest magnitude of each bucket: NaN where it is not finite.
void largest_of_blocks(const Cut& cut, float* signal, const float* grad, float* found, Stream stream);

// NVFP4's scales of the `num` blocks of a cut whose groups are of blocks, without buckets: 4 bytes for each group and one for
// each block, and the scale of each block. `found` has a word for each group, 0 before.
void write_tensor_scales(const Cut& cut, int64_t num, const float* largest, uint32_t* found, uint8_t* bytes, float* scales,
                          Stream stream);
void read_tensor_scales(const Cut& cut, int64_t num, const uint8_t* bytes, float* scales, Stream stream);

}  // namespace sage::cuda
