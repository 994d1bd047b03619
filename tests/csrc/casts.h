// The casts to 16 bits against float64. Include it behind the kernels, drawn.h and bins.h.
#pragma once

using namespace sage::cpu;

// x rounded to multiples of the spacing of fp16 or bf16 at x, in float64.
template <Format kFormat>
inline float rounded(float x) {
  constexpr bool kFp16 = kFormat == Format::fp16;
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), kFp16 ? -14 : -126) - (kFp16 ? 10 : 7);
  const double nearest = std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -exponent)), exponent);
  return kFp16 && std::fabs(nearest) > 65504 ? static_cast<float>(std::copysign(INFINITY, x))
                                             : static_cast<float>(nearest);
}

template <Format kFormat>
void test_cast(Isa isa, const Team& team, int64_t n) {
  const int64_t num_ranks = 1 + below(5);
  const float by = static_cast<float>(num_ranks), scale = below(3) ? 1.0f : 7e4f;
  const bool feeds_back = below(4);
  std::vector<uint16_t> rows(num_ranks * n), total(n);
  Floats expected(n, -0.0f);
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const Floats residual = draw(n);
    Floats grad = draw(n), left = residual;
    for (float& x : grad) x *= scale;
    uint16_t* row = rows.data() + rank * n;
    cast_share(isa, team, kFormat, {grad.data(), feeds_back ? left.data() : nullptr, row, by}, n);
    for (int64_t i = 0; i < n; ++i) {
      const float signal = feeds_back ? residual[i] + grad[i] : grad[i], part = rounded<kFormat>(signal / by);
      const float error = signal - part * by;
      expect(alike(widen<kFormat>(row[i]), part), "cast: share");
      expect(alike(left[i], !feeds_back ? residual[i] : std::isfinite(error) ? error : 0.0f), "cast: residual");
      expected[i] += part;
    }
  }
  Floats wide(n);
  widen(isa, team, kFormat, rows.data(), wide.data(), n);
  for (int64_t i = 0; i < n; ++i) expect(alike(wide[i], widen<kFormat>(rows[i])), "cast: widen");
  sum_casts(isa, team, kFormat, rows.data(), num_ranks, total.data(), n);
  for (int64_t i = 0; i < n; ++i)
    expect(alike(widen<kFormat>(total[i]), rounded<kFormat>(expected[i])), "cast: sum");
}
