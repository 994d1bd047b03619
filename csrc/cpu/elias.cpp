// Torch ops for Elias delta streams on the CPU.
#include "elias.h"

#include "team.h"

namespace sage::cpu {

std::tuple<Tensor, Tensor> encode_elias(Tensor levels, std::vector<int64_t> bounds) {
  const bool in_bytes = levels.scalar_type() == ScalarType::Char;
  const int8_t* bytes = in_bytes ? in<int8_t>(levels, "levels", levels) : nullptr;
  const int32_t* wide = in_bytes ? nullptr : in<int32_t>(levels, "levels", levels);
  std::vector<int64_t> bits(check_bounds(bounds, levels.numel()));
  const Team team = torch_team();
  const std::vector<Stream>& streams = in_bytes ? encode_streams(isa(), team, bytes, bounds, bits.data())
                                                : encode_streams(isa(), team, wide, bounds, bits.data());
  int64_t sum = 0, num = 0;
  for (int64_t each : bits) {
    STD_TORCH_CHECK(each >= 0, "levels: a magnitude of 2,147,483,648: expected at most 2,147,483,647");
    sum += each;
    num += words_of(each);
  }
  STD_TORCH_CHECK(sum <= kGreatest, "Elias streams of ", sum, " bits in all; at most ", kGreatest,
                  " are allowed: use coding=packed");
  Tensor words = empty<int32_t>(num, levels), lengths = empty<int32_t>(static_cast<int64_t>(bits.size()), levels);
  copy_words(team, streams, reinterpret_cast<uint32_t*>(data<int32_t>(words)));
  std::copy(bits.begin(), bits.end(), data<int32_t>(lengths));
  return {words, lengths};
}

void decode_elias_(Tensor levels, Tensor words, Tensor bits, std::vector<int64_t> bounds) {
  const auto* word = reinterpret_cast<const uint32_t*>(in<int32_t>(words, "words", levels));
  const int32_t* lengths = in<int32_t>(bits, "bits", levels);
  const auto decode = [&](auto* out) {
    const size_t groups = check_bounds(bounds, levels.numel());
    check_numel(bits, static_cast<int64_t>(groups), "bits");
    STD_TORCH_CHECK(decode_streams(isa(), torch_team(), word, words.numel(), lengths, bounds, out),
                    "words: not the Elias streams of ", groups, " groups with ", levels.numel(), " elements in all");
  };
  if (levels.scalar_type() == ScalarType::Char)
    decode(out<int8_t>(levels, "out", levels));
  else
    decode(out<float>(levels, "out", levels));
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("encode_elias", TORCH_BOX(&sage::cpu::encode_elias));
  m.impl("decode_elias_", TORCH_BOX(&sage::cpu::decode_elias_));
}
