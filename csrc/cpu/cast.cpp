// Torch ops for casts to 16 bits on the CPU.
#include "cast.h"

#include "team.h"

namespace sage::cpu {

namespace {

// The elements are not indexed, so there may be more of them than int32 can index.
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

bool is_fp16(const Tensor& x, const char* name) {
  const bool is = x.scalar_type() == ScalarType::Half;
  STD_TORCH_CHECK(is || x.scalar_type() == ScalarType::BFloat16, name,
                  " has another dtype: expected float16 or bfloat16");
  return is;
}

// Return the bits of a vector of float16, or else of bfloat16.
const uint16_t* in(bool fp16, const Tensor& x, const char* name, const Tensor& beside) {
  fp16 ? check<Fp16>(x, name, beside, kAny) : check<Bf16>(x, name, beside, kAny);
  return static_cast<const uint16_t*>(x.const_data_ptr());
}

uint16_t* out(bool fp16, const Tensor& x, const char* name, const Tensor& beside) {
  in(fp16, x, name, beside);
  return static_cast<uint16_t*>(x.mutable_data_ptr());
}

}  // namespace

void cast_share_(Tensor share, Tensor grad, std::optional<Tensor> residual, int64_t world_size) {
  const bool fp16 = is_fp16(share, "share");
  const int64_t n = grad.numel();
  Share x{sage::in<float>(grad, "grad", grad, kAny), nullptr, out(fp16, share, "share", grad),
          static_cast<float>(world_size)};
  if (residual) x.residual = sage::out<float>(*residual, "residual", grad, kAny);
  STD_TORCH_CHECK(share.numel() == n && (!residual || residual->numel() == n), "grad has ", n,
                  " elements: expected as many in share and residual");
  STD_TORCH_CHECK(n == 0 || x.residual != x.grad, "grad and residual are one vector: expected two");
  STD_TORCH_CHECK(world_size >= 1, "world_size=", world_size, ": expected 1 or more");
  cast_share(isa(), torch_team(), fp16 ? Format::fp16 : Format::bf16, x, n);
}

void sum_casts_(Tensor sum, Tensor rows) {
  const bool fp16 = is_fp16(sum, "out");
  const int64_t n = sum.numel();
  uint16_t* to = out(fp16, sum, "out", sum);
  const uint16_t* row = in(fp16, rows, "rows", sum);
  STD_TORCH_CHECK(n == 0 ? rows.numel() == 0 : rows.numel() >= n && rows.numel() % n == 0, "rows has ", rows.numel(),
                  " elements: expected one row or more of ", n);
  if (n == 0) return;
  const int64_t num = rows.numel() / n;
  sum_casts(isa(), torch_team(), fp16 ? Format::fp16 : Format::bf16, row, num, to, n);
}

void widen_(Tensor wide, Tensor x) {
  const bool fp16 = is_fp16(x, "x");
  float* to = sage::out<float>(wide, "out", x, kAny);
  const uint16_t* half = in(fp16, x, "x", x);
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
