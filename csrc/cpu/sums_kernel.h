// See sums.h. Compiled for each instruction set by each_isa.h.

// What a chunk accumulates for one register of its elements: lanes 0 to 15, or 16 to 31.
template <Kind kKind>
struct Lanes {
  D sum, other;
  I largest;
  int64_t below;

  Lanes() : sum(zeros()), other(zeros()), largest(seti(0)), below(0) {}

  void add(F a) {
    const I magnitude = band(bits(a), seti(kMagnitude));
    if constexpr (kKind == Kind::absolute) sum = add_wide(sum, floats(magnitude));
    if constexpr (kKind == Kind::squares) sum = add_squares(sum, a);
    if constexpr (kKind == Kind::squares || kKind == Kind::largest) largest = mostu(largest, magnitude);
    if constexpr (kKind == Kind::sides) {
      const M negative = is_less(a, set(0));
      sum = add_wide(sum, select(negative, a, set(0)));
      other = add_wide(other, select(negative, set(0), a));
      below += __builtin_popcount(bits_of(negative));
    }
  }
};

// Adds the gradient to a chunk, where there is one, and its elements to the lanes 0 to 15 and 16 to 31.
template <bool kAdd, class L>
void add_chunk(float* signal, const float* grad, int64_t n, L& low, L& high) {
  const auto take = [&](L& lanes, int64_t i) {
    __builtin_prefetch(signal + i + 512);
    if constexpr (kAdd) __builtin_prefetch(grad + i + 512);
    F a = load(signal + i);
    if constexpr (kAdd) {
      a = add(a, load(grad + i));
      store(signal + i, a);
    }
    lanes.add(a);
  };
  const auto take_some = [&](L& lanes, int64_t i, int num) {
    F a = load(signal + i, num);
    if constexpr (kAdd) {
      a = add(a, load(grad + i, num));
      store(signal + i, a, num);
    }
    lanes.add(a);
  };
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    take(low, i);
    take(high, i + 16);
  }
  if (i < n) take_some(low, i, static_cast<int>(std::min<int64_t>(16, n - i)));
  if (i + 16 < n) take_some(high, i + 16, static_cast<int>(n - i - 16));
}

template <Kind kKind, bool kAdd>
Statistic of_chunk(float* signal, const float* grad, int64_t n) {
  Lanes<kKind> low, high;
  add_chunk<kAdd>(signal, grad, n, low, high);
  Statistic found;
  if constexpr (kKind != Kind::largest) found.sum = fold(low.sum, high.sum);
  if constexpr (kKind == Kind::sides) found.other = fold(low.other, high.other);
  if constexpr (kKind == Kind::squares || kKind == Kind::largest)
    found.largest = largest_of(mostu(low.largest, high.largest));
  found.below = low.below + high.below;
  return found;
}

template <Kind kKind>
Statistic of_chunk(float* signal, const float* grad, int64_t n) {
  return grad ? of_chunk<kKind, true>(signal, grad, n) : of_chunk<kKind, false>(signal, grad, n);
}

inline Statistic of_chunk(Kind kind, float* signal, const float* grad, int64_t n) {
  switch (kind) {
    case Kind::absolute:
      return of_chunk<Kind::absolute>(signal, grad, n);
    case Kind::sides:
      return of_chunk<Kind::sides>(signal, grad, n);
    case Kind::squares:
      return of_chunk<Kind::squares>(signal, grad, n);
    default:
      return of_chunk<Kind::largest>(signal, grad, n);
  }
}

// The statistics of one group.
inline Statistic of_group(Kind kind, float* signal, const float* grad, int64_t n) {
  if (n <= kChunk) return n == 0 ? Statistic{} : of_chunk(kind, signal, grad, n);
  std::vector<Statistic> chunks((n + kChunk - 1) / kChunk);
  for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
    const int64_t begin = static_cast<int64_t>(chunk) * kChunk;
    chunks[chunk] = of_chunk(kind, signal + begin, grad ? grad + begin : nullptr, std::min(kChunk, n - begin));
  }
  return merged(chunks.data(), static_cast<int64_t>(chunks.size()));
}
