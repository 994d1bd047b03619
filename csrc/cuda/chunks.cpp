// Torch op of the largest elements of chunks on a GPU.
#include "../chunk_checks.h"
#include "stream.h"

namespace sage::cuda {

static_assert(kMostInChunk == kMostOfChunk && kRowInChunk == kRowOfChunk);

std::tuple<Tensor, Tensor> largest_of_chunks(Tensor x, Tensor chunks, int64_t num) {
  const float* from = in<float>(x, "x", x);
  const int64_t num_chunks = check_table(chunks, x);
  STD_TORCH_CHECK(num >= 0 && num <= kMostElements, "num=", num, ": expected 0 to ", kMostElements);
  const OnDevice here(x);
  Tensor values = empty<float>(num, x), positions = empty<int32_t>(num, x);
  const auto* table = static_cast<const Chunk*>(chunks.const_data_ptr());
  largest_in_chunks({from, x.numel(), table, num_chunks, static_cast<int32_t>(num), data<float>(values),
                     data<int32_t>(positions)},
                    here.stream());
  return {values, positions};
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("largest_of_chunks", TORCH_BOX(&sage::cuda::largest_of_chunks)); }
