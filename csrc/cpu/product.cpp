// Torch ops of products with thin matrices on the CPU.
#include "product.h"

#include "../product_checks.h"
#include "team.h"

namespace sage::cpu {

void write_product_(Tensor out, std::optional<Tensor> signal, Tensor left, Tensor right, int64_t rank) {
  float* to = sage::out<float>(out, "out", out);
  float* own = signal ? sage::out<float>(*signal, "signal", out) : nullptr;
  const float *p = in<float>(left, "left", out), *q = in<float>(right, "right", out);
  check_product(out, signal, left, right, rank);
  write_product(isa(), torch_team(), p, q, left.numel() / rank, rank, right.numel() / rank, to, own);
}

Tensor thin_product_(Tensor matrix, std::optional<Tensor> grad, Tensor basis, int64_t rows, int64_t rank,
                     bool transposed) {
  float* x = sage::out<float>(matrix, "matrix", matrix);
  const float *added = grad ? in<float>(*grad, "grad", matrix) : nullptr, *q = in<float>(basis, "basis", matrix);
  const int64_t length = check_thin(matrix, grad, basis, rows, rank, transposed);
  Tensor product = empty<float>(rank * length, matrix);
  thin_product(isa(), torch_team(), x, added, q, rows, matrix.numel() / rows, rank, transposed, data<float>(product));
  return product;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("write_product_", TORCH_BOX(&sage::cpu::write_product_));
  m.impl("thin_product_", TORCH_BOX(&sage::cpu::thin_product_));
}
