// Torch ops for Elias delta streams on a GPU. The host waits once in each: for the number of words, and for whether words are
// streams.
#include "segment_tensor.h"  // first: it chooses what a stream is

#include "elias.h"

namespace sage::cuda {

namespace {

constexpr int64_t kTotalWords = sizeof(EliasTotals) / sizeof(unsigned long long);

unsigned long long* words_in(const Tensor& x) { return static_cast<unsigned long long*>(x.mutable_data_ptr()); }

}  // namespace

std::tuple<Tensor, Tensor> encode_elias(Tensor levels, std::vector<int64_t> bounds) {
  const bool in_bytes = levels.scalar_type() == ScalarType::Char;
  const Levels given{in_bytes ? static_cast<const void*>(in<int8_t>(levels, "levels", levels))
                              : static_cast<const void*>(in<int32_t>(levels, "levels", levels)),
                     in_bytes};
  const auto num_groups = static_cast<int64_t>(check_bounds(bounds, levels.numel()));
  const OnDevice here(levels);
  const DeviceSegments on(bounds, {}, levels, here.stream(), kSpan);
  const int64_t num_tiles = on.cut.num_tiles, num_sums = 2 * num_tiles + 1;
  const Tensor sums = zeros<int64_t>(num_sums + num_groups + kTotalWords, levels, here.stream());
  const Tensor behind = empty<int32_t>(num_tiles, levels), before = empty<int64_t>(num_tiles + num_groups, levels);
  Tensor lengths = empty<int32_t>(num_groups, levels);
  const Measured measured{data<int32_t>(behind), words_in(before), words_in(sums) + num_sums, words_in(before) + num_tiles,
                          data<int32_t>(lengths)};
  auto* totals = reinterpret_cast<EliasTotals*>(words_in(sums) + num_sums + num_groups);
  measure_streams(on.cut, given, measured, words_in(sums), totals, here.stream());
  EliasTotals found;
  copy_to_host(&found, totals, sizeof found, here.stream());
  STD_TORCH_CHECK(found.wrong == 0, "levels: a magnitude of 2,147,483,648: expected at most 2,147,483,647");
  STD_TORCH_CHECK(found.bits <= kMostElements, "Elias streams of ", found.bits, " bits in all; at most ", kMostElements,
                  " are allowed: use coding=packed");
  Tensor words = zeros<int32_t>(static_cast<int64_t>(found.words), levels, here.stream());
  encode_streams(on.cut, given, measured, reinterpret_cast<uint32_t*>(data<int32_t>(words)), here.stream());
  return {words, lengths};
}

void decode_elias_(Tensor levels, Tensor words, Tensor bits, std::vector<int64_t> bounds) {
  const bool in_bytes = levels.scalar_type() == ScalarType::Char;
  int8_t* bytes = in_bytes ? out<int8_t>(levels, "out", levels) : nullptr;
  float* floats = in_bytes ? nullptr : out<float>(levels, "out", levels);
  const auto* word = reinterpret_cast<const uint32_t*>(in<int32_t>(words, "words", levels));
  const int32_t* lengths = in<int32_t>(bits, "bits", levels);
  const auto num_groups = static_cast<int64_t>(check_bounds(bounds, levels.numel()));
  check_numel(bits, num_groups, "bits");
  const OnDevice here(levels);
  const DeviceSegments on(bounds, {}, levels, here.stream());
  if (levels.numel() > 0)
    STD_CUDA_CHECK(cudaMemsetAsync(levels.mutable_data_ptr(), 0, levels.numel() * (in_bytes ? 1 : sizeof(float)),
                                   here.stream()));
  const int64_t most_parts = words.numel() * 32 / kPartBits + num_groups;
  const Tensor places = empty<int64_t>(2 * (num_groups + 1), levels);
  const Tensor tables = empty<uint8_t>(most_parts * (kEntries + 1), levels);
  const Tensor sums = zeros<int64_t>(most_parts + 1 + kTotalWords, levels, here.stream());
  auto* totals = reinterpret_cast<EliasTotals*>(words_in(sums) + most_parts + 1);
  const Streams streams{word, words.numel(), lengths, on.cut.bounds, static_cast<int32_t>(num_groups), most_parts,
                        data<int64_t>(places), data<int64_t>(places) + num_groups + 1, data<uint8_t>(tables),
                        data<uint8_t>(tables) + most_parts * kEntries, words_in(sums)};
  decode_streams(streams, floats, bytes, totals, here.stream());
  EliasTotals found;
  copy_to_host(&found, totals, sizeof found, here.stream());
  STD_TORCH_CHECK(found.wrong == 0 && found.refused == 0, "words: not the Elias streams of ", num_groups, " groups with ",
                  levels.numel(), " elements in all");
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("encode_elias", TORCH_BOX(&sage::cuda::encode_elias));
  m.impl("decode_elias_", TORCH_BOX(&sage::cuda::decode_elias_));
}
