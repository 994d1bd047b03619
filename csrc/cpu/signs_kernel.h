// See signs.h. Compiled for each instruction set by each_isa.h.

// The elements [begin, end): writes their bits, and with `keep` leaves the error in the signal. `begin` is a multiple
// of 16.
template <bool kKeep>
void sign_range(const Signs& x, int64_t begin, int64_t end) {
  Cursor cursor(x.bounds, x.num_groups, begin);
  for (int64_t i = begin; i < end; i += 16) {
    const int64_t num = std::min<int64_t>(16, end - i);
    __builtin_prefetch(x.signal + i + 512);
    const F a = load_some(x.signal + i, num);
    const M below = is_less(a, set(0));
    const uint32_t set_bits = ~bits_of(below) & ((1u << num) - 1);
    x.bits[i / 8] = static_cast<uint8_t>(set_bits);
    if (num > 8) x.bits[i / 8 + 1] = static_cast<uint8_t>(set_bits >> 8);
    if constexpr (kKeep) {
      const int64_t group = cursor.group_at(i);
      const bool whole = num == 16 && cursor.is_whole(i);
      const F low = whole ? set(x.low[group]) : of_groups(x.low, cursor, i, num);
      const F high = whole ? set(x.high[group]) : of_groups(x.high, cursor, i, num);
      const F left = finite_or_zero(sub(a, select(below, low, high)));
      store_some(x.signal + i, left, num);
    }
  }
}

inline void sign_range(const Signs& x, bool keep, int64_t begin, int64_t end) {
  return keep ? sign_range<true>(x, begin, end) : sign_range<false>(x, begin, end);
}

// Updates the momentum of the elements [begin, end) and writes its signs; returns the signal's largest magnitude.
inline uint32_t momentum_range(const MomentumSigns& x, int64_t begin, int64_t end) {
  I largest = seti(0);
  for (int64_t i = begin; i < end; i += 16) {
    const int64_t num = std::min<int64_t>(16, end - i);
    __builtin_prefetch(x.signal + i + 512);
    __builtin_prefetch(x.momentum + i + 512);
    const F a = load_some(x.signal + i, num);
    largest = mostu(largest, band(bits(a), seti(kMagnitude)));
    const F m = fused(finite_or_zero(a), set(x.rest), mul(load_some(x.momentum + i, num), set(x.beta)));
    store_some(x.momentum + i, m, num);
    const uint32_t set_bits = ~bits_of(is_less(m, set(0))) & ((1u << num) - 1);
    x.bits[i / 8] = static_cast<uint8_t>(set_bits);
    if (num > 8) x.bits[i / 8 + 1] = static_cast<uint8_t>(set_bits >> 8);
  }
  return largest_of(largest);
}

// What becomes of a sum of payloads.
inline F result_of(const SignMean& x, F sum) {
  // The sign of the sum, 0 if it is 0; NaN stays.
  if (x.votes) return select(is_less(set(0), sum), set(1), select(is_less(sum, set(0)), set(-1), sum));
  const float divisor = static_cast<float>(x.divisor);
  const bool is_power = (x.divisor & (x.divisor - 1)) == 0;  // then the multiplication is exact too
  return is_power ? mul(sum, set(1 / divisor)) : div(sum, set(divisor));
}

inline void put(const SignMean& x, int64_t i, F mean, int64_t num) {
  if (x.streams && num == 16)
    stream(x.out + i, mean);
  else
    store_some(x.out + i, mean, num);
}

// out = Σ_w values_w / divisor for the elements [begin, end), added in the order of w to 0 or to what `out` holds.
inline void mean_of_signs(const SignMean& x, int64_t begin, int64_t end) {
  constexpr int64_t kAtOnce = 64;  // elements for which a group's numbers are loaded once
  Cursor cursor(x.bounds, x.num_groups, begin);
  for (int64_t i = begin; i < end;) {
    const int64_t group = cursor.group_at(i);
    if (end - i >= kAtOnce && cursor.is_whole(i, kAtOnce)) {
      F sums[kAtOnce / 16];
      for (int v = 0; v < kAtOnce / 16; ++v) sums[v] = x.added ? load(x.out + i + 16 * v) : set(0);
      for (int64_t w = 0; w < x.num_payloads; ++w) {
        uint64_t set_bits;
        std::memcpy(&set_bits, x.bits + w * x.num_bytes + i / 8, sizeof set_bits);
        const F low = set(x.low[w * x.num_groups + group]), high = set(x.high[w * x.num_groups + group]);
        for (int v = 0; v < kAtOnce / 16; ++v)
          sums[v] = add(sums[v], select(mask_of(set_bits >> 16 * v & 0xffff), high, low));
      }
      for (int v = 0; v < kAtOnce / 16; ++v) put(x, i + 16 * v, result_of(x, sums[v]), 16);
      i += kAtOnce;
      continue;
    }
    const int64_t num = std::min<int64_t>(16, end - i);
    const bool whole = num == 16 && cursor.is_whole(i);
    F sum = x.added ? load_some(x.out + i, num) : set(0);
    for (int64_t w = 0; w < x.num_payloads; ++w) {
      const uint8_t* bytes = x.bits + w * x.num_bytes + i / 8;
      uint16_t set_bits = bytes[0];
      if (num > 8) std::memcpy(&set_bits, bytes, 2);
      const float *low = x.low + w * x.num_groups, *high = x.high + w * x.num_groups;
      const F lows = whole ? set(low[group]) : of_groups(low, cursor, i, num);
      const F highs = whole ? set(high[group]) : of_groups(high, cursor, i, num);
      sum = add(sum, select(mask_of(set_bits), highs, lows));
    }
    put(x, i, result_of(x, sum), num);
    i += 16;
  }
  fence();
}
