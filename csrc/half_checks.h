// Checks of tensors of 16-bit floats, and pointers to their bits.
#pragma once

#include "tensor_checks.h"

namespace sage {

// The elements are not indexed, so there may be more of them than int32 can index.
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

inline bool is_fp16(const Tensor& x, const char* name) {
  const bool is = x.scalar_type() == ScalarType::Half;
  STD_TORCH_CHECK(is || x.scalar_type() == ScalarType::BFloat16, name,
                  " has another dtype: expected float16 or bfloat16");
  return is;
}

// Return the bits of a vector of float16, or else of bfloat16.
inline const uint16_t* half_in(bool fp16, const Tensor& x, const char* name, const Tensor& beside) {
  fp16 ? check<Fp16>(x, name, beside, kAny) : check<Bf16>(x, name, beside, kAny);
  return static_cast<const uint16_t*>(x.const_data_ptr());
}

inline uint16_t* half_out(bool fp16, const Tensor& x, const char* name, const Tensor& beside) {
  half_in(fp16, x, name, beside);
  return static_cast<uint16_t*>(x.mutable_data_ptr());
}

inline void check_share(const Tensor& share, const Tensor& grad, const std::optional<Tensor>& residual,
                        int64_t world_size) {
  const int64_t n = grad.numel();
  STD_TORCH_CHECK(share.numel() == n && (!residual || residual->numel() == n), "grad has ", n,
                  " elements: expected as many in share and residual");
  STD_TORCH_CHECK(n == 0 || !residual || residual->const_data_ptr() != grad.const_data_ptr(),
                  "grad and residual are one vector: expected two");
  STD_TORCH_CHECK(world_size >= 1, "world_size=", world_size, ": expected 1 or more");
}

// Returns the number of rows of n elements.
inline int64_t check_half_rows(const Tensor& rows, int64_t n) {
  STD_TORCH_CHECK(n == 0 ? rows.numel() == 0 : rows.numel() >= n && rows.numel() % n == 0, "rows has ", rows.numel(),
                  " elements: expected one row or more of ", n);
  return n == 0 ? 0 : rows.numel() / n;
}

}  // namespace sage
