// Torch ops for casts to 16 bits on the CPU.
#include "cast.h"

#include "../half_checks.h"
#include "team.h"

namespace sage::cpu {

void cast_share_(Tensor share, Tensor grad, std::optional<Tensor> residual, int64_t world_size) {
  const bool fp16 = is_fp16(share, "share");
  Share x{in<float>(grad, "grad", grad, kAny), nullptr, half_out(fp16, share, "share", grad),
          static_cast<float>(world_size)};
  if (residual) x.residual = out<float>(*residual, "residual", grad, kAny);
  check_share(share, grad, residual, world_size);
  cast_share(isa(), torch_team(), fp16 ? Format::fp16 : Format::bf16, x, grad.numel());
}

void sum_casts_(Tensor sum, Tensor rows) {
  const bool fp16 = is_fp16(sum, "out");
  const int64_t n = sum.numel();
  uint16_t* to = half_out(fp16, sum, "out", sum);
  const uint16_t* row = half_in(fp16, rows, "rows", sum);
  const int64_t num = check_half_rows(rows, n);
  if (n > 0) sum_casts(isa(), torch_team(), fp16 ? Format::fp16 : Format::bf16, row, num, to, n);
}

void widen_(Tensor wide, Tensor x) {
  const bool fp16 = is_fp16(x, "x");
  float* to = out<float>(wide, "out", x, kAny);
  const uint16_t* half = half_in(fp16, x, "x", x);
  STD_TORCH_CHECK(wide.numel() == x.numel(), "out has ", wide.numel(), " elements and x ", x.numel(),
                  ": expected as many");
  widen(isa(), torch_team(), fp16 ? Format::fp16 : Format::bf16, half, to, x.numel());
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("cast_share_", TORCH_BOX(&sage::cpu::cast_share_));
  m.impl("sum_casts_", TORCH_BOX(&sage::cpu::sum_casts_));
  m.impl("widen_", TORCH_BOX(&sage::cpu::widen_));
}
