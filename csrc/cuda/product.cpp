// Torch op that writes a product of two thin matrices and subtracts it from a signal, on a GPU.
#include "../product_checks.h"
#include "stream.h"

namespace sage::cuda {

void write_product_(Tensor product, std::optional<Tensor> signal, Tensor left, Tensor right, int64_t rank) {
  float* to = out<float>(product, "out", product);
  float* own = signal ? out<float>(*signal, "signal", product) : nullptr;
  const float *p = in<float>(left, "left", product), *q = in<float>(right, "right", product);
  check_product(product, signal, left, right, rank);
  const OnDevice here(product);
  write_product({p, q, left.numel() / rank, rank, right.numel() / rank, to, own}, here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) { m.impl("write_product_", TORCH_BOX(&sage::cuda::write_product_)); }
