// Torch ops for casts to 16 bits on a GPU.
#include "../half_checks.h"
#include "stream.h"

namespace sage::cuda {

void cast_share_(Tensor share, Tensor grad, std::optional<Tensor> residual, int64_t world_size) {
  const bool fp16 = is_fp16(share, "share");
  const float* signal = in<float>(grad, "grad", grad, kAny);
  float* left = residual ? out<float>(*residual, "residual", grad, kAny) : nullptr;
  uint16_t* half = half_out(fp16, share, "share", grad);
  check_share(share, grad, residual, world_size);
  const OnDevice here(grad);
  cast_share(fp16, {signal, left, half, world_size}, grad.numel(), here.stream());
}

void sum_casts_(Tensor sum, Tensor rows) {
  const bool fp16 = is_fp16(sum, "out");
  const int64_t n = sum.numel();
  uint16_t* to = half_out(fp16, sum, "out", sum);
  const uint16_t* row = half_in(fp16, rows, "rows", sum);
  const int64_t num = check_half_rows(rows, n);
  const OnDevice here(sum);
  sum_casts(fp16, row, num, to, n, here.stream());
}

void widen_(Tensor wide, Tensor x) {
  const bool fp16 = is_fp16(x, "x");
  float* to = out<float>(wide, "out", x, kAny);
  const uint16_t* half = half_in(fp16, x, "x", x);
  STD_TORCH_CHECK(wide.numel() == x.numel(), "out has ", wide.numel(), " elements and x ", x.numel(),
                  ": expected as many");
  const OnDevice here(x);
  widen(fp16, half, to, x.numel(), here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("cast_share_", TORCH_BOX(&sage::cuda::cast_share_));
  m.impl("sum_casts_", TORCH_BOX(&sage::cuda::sum_casts_));
  m.impl("widen_", TORCH_BOX(&sage::cuda::widen_));
}
