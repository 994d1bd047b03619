// See moments.h. Compiled for each instruction set by each_isa.h, after sums_kernel.h, whose add_chunk() it uses.

// What a chunk accumulates for one register of its elements: lanes 0 to 15, or 16 to 31.
struct MomentLanes {
  D sum, absolute, square;
  I most;
  int64_t nonzero;

  MomentLanes() : sum(zeros()), absolute(zeros()), square(zeros()), most(seti(0)), nonzero(0) {}

  void add(F a) {
    const I magnitude = band(bits(a), seti(kMagnitude));
    sum = add_wide(sum, a);
    absolute = add_wide(absolute, floats(magnitude));
    square = add_squares(square, a);
    most = mostu(most, magnitude);
    nonzero += __builtin_popcount(bits_of(is_lessi(seti(0), magnitude)));
  }
};

template <bool kAdd>
Moments moments_of(float* signal, const float* grad, int64_t n) {
  MomentLanes low, high;
  add_chunk<kAdd>(signal, grad, n, low, high);
  return {fold(low.sum, high.sum), fold(low.absolute, high.absolute), fold(low.square, high.square),
          low.nonzero + high.nonzero, largest_of(mostu(low.most, high.most))};
}

// Returns the moments of a chunk, after the gradient has been added to it, if there is one.
inline Moments moments_of(float* signal, const float* grad, int64_t n) {
  return grad ? moments_of<true>(signal, grad, n) : moments_of<false>(signal, grad, n);
}

// Returns Σ(x − least), and the sum of its squares, for a chunk.
inline Moments excess_of(const float* x, int64_t n, float least) {
  D sum[2] = {zeros(), zeros()}, square[2] = {zeros(), zeros()};
  float last[32];
  for (int64_t i = 0; i < n; i += 32) {
    const float* at = x + i;
    if (i + 32 > n) {  // what is added is 0 where there is no element
      std::fill(last, last + 32, least);
      std::memcpy(last, at, (n - i) * sizeof *last);
      at = last;
    }
    for (int half = 0; half < 2; ++half) {
      const F over = sub(load(at + 16 * half), set(least));
      sum[half] = add_wide(sum[half], over);
      square[half] = add_squares(square[half], over);
    }
  }
  return {fold(sum[0], sum[1]), 0, fold(square[0], square[1])};
}
