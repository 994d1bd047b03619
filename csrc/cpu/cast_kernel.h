// See cast.h. Compiled for each instruction set by each_isa.h.

template <Format kFormat>
H to_half(F x) {
  if constexpr (kFormat == Format::fp16) return to_fp16(x);
  const I all = bits(x), odd = band(shr<16>(all), seti(1));
  const M is_nan = is_lessi(seti(0x7f800000u), band(all, seti(kMagnitude)));
  return low_halves(shr<16>(selecti(is_nan, seti(0x7fc00000u), addi(addi(all, seti(0x7fff)), odd))));
}

template <Format kFormat>
F from_half(H half) {
  if constexpr (kFormat == Format::fp16) return from_fp16(half);
  return floats(shl<16>(wide_half(half)));
}

inline H load_some(const uint16_t* x, int64_t num) {
  if (num >= 16) return load_half(x);
  uint16_t all[16] = {};
  std::memcpy(all, x, num * sizeof *x);
  return load_half(all);
}

inline void store_some(uint16_t* x, H half, int64_t num, bool streams = false) {
  if (num < 16) {
    uint16_t all[16];
    store_half(all, half);
    std::memcpy(x, all, num * sizeof *x);
  } else if (streams) {
    stream_half(x, half);
  } else {
    store_half(x, half);
  }
}

// The product share * W is exact: it has at most 11 + 13 bits for W up to 8,192.
template <Format kFormat, bool kExact>
void share_range(const Share x, int64_t begin, int64_t end) {
  const F by = set(x.world_size), times = set(1 / x.world_size);
  for (int64_t i = begin; i < end; i += 16) {
    const int64_t num = end - i;
    F signal = load_some(x.grad + i, num);
    if (x.residual) signal = add(load_some(x.residual + i, num), signal);
    const H half = to_half<kFormat>(kExact ? mul(signal, times) : div(signal, by));
    store_some(x.share + i, half, num, x.streams);
    if (x.residual)
      store_some(x.residual + i, finite_or_zero(sub(signal, mul(from_half<kFormat>(half), by))), num);
  }
  fence();
}

// out = cast(sum of the rows), added in float32 in their order.
template <Format kFormat>
void sum_range(const uint16_t* rows, int64_t num_rows, int64_t n, uint16_t* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) {
    F sum = from_half<kFormat>(load_some(rows + i, end - i));
    for (int64_t row = 1; row < num_rows; ++row)
      sum = add(sum, from_half<kFormat>(load_some(rows + row * n + i, end - i)));
    store_some(out + i, to_half<kFormat>(sum), end - i);
  }
}

template <Format kFormat>
void widen_range(const uint16_t* x, float* out, int64_t begin, int64_t end, bool streams) {
  for (int64_t i = begin; i < end; i += 16) {
    const F wide = from_half<kFormat>(load_some(x + i, end - i));
    if (streams && end - i >= 16)
      stream(out + i, wide);
    else
      store_some(out + i, wide, end - i);
  }
  fence();
}

inline void share_range(Format format, const Share& x, int64_t begin, int64_t end) {
  if (format == Format::fp16)
    return x.is_exact() ? share_range<Format::fp16, true>(x, begin, end) : share_range<Format::fp16, false>(x, begin, end);
  x.is_exact() ? share_range<Format::bf16, true>(x, begin, end) : share_range<Format::bf16, false>(x, begin, end);
}

inline void sum_range(Format format, const uint16_t* rows, int64_t num_rows, int64_t n, uint16_t* out, int64_t begin,
                      int64_t end) {
  format == Format::fp16 ? sum_range<Format::fp16>(rows, num_rows, n, out, begin, end)
                         : sum_range<Format::bf16>(rows, num_rows, n, out, begin, end);
}

inline void widen_range(Format format, const uint16_t* x, float* out, int64_t begin, int64_t end, bool streams) {
  format == Format::fp16 ? widen_range<Format::fp16>(x, out, begin, end, streams)
                         : widen_range<Format::bf16>(x, out, begin, end, streams);
}
