// Torch op of the largest elements of chunks on the CPU.
#include "chunks.h"

#include "../chunk_checks.h"
#include "team.h"

namespace sage::cpu {

static_assert(kMostInChunk == kMostOfChunk && kRowInChunk == kRowOfChunk);

std::tuple<Tensor, Tensor> largest_of_chunks(Tensor x, Tensor chunks, int64_t num) {
  const float* from = in<float>(x, "x", x);
  const int64_t num_chunks = check_table(chunks, x);
  const auto* table = static_cast<const Chunk*>(chunks.const_data_ptr());
  check_chunks(static_cast<const int32_t*>(chunks.const_data_ptr()), num_chunks, x.numel(), num);
  Tensor values = empty<float>(num, x), positions = empty<int32_t>(num, x);
  largest_in_chunks(isa(), torch_team(), {from, table, num_chunks, num, data<float>(values), data<int32_t>(positions)});
  return {values, positions};
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) { m.impl("largest_of_chunks", TORCH_BOX(&sage::cpu::largest_of_chunks)); }
