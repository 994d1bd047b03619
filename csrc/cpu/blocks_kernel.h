// See blocks.h. Compiled for each instruction set by each_isa.h.

// The sum of sixteen elements, or of `num` at the end of a bucket.
template <Codec kCodec, bool kWhole>
F summed(const Blocks& x, const float* steps, int64_t i, int num) {
  F a = kWhole ? load(x.signal + i) : load(x.signal + i, num);
  if (x.grad) a = add(a, kWhole ? load(x.grad + i) : load(x.grad + i, num));
  for (int64_t w = 0; w < x.num_payloads; ++w) {
    const uint8_t* codes = x.payloads + w * x.numel + i;
    uint8_t last[16] = {};
    if constexpr (!kWhole) codes = static_cast<const uint8_t*>(std::memcpy(last, codes, num));
    a = add(a, mul(value_of<kCodec>(x.coding, load_u8(codes)), set(steps[w])));
  }
  return a;
}

// Adds up a bucket, divides, and returns its largest magnitude.
template <Codec kCodec>
uint32_t sum_block(const Blocks& x, int64_t bucket) {
  const int64_t begin = x.bounds[bucket], end = x.bounds[bucket + 1];
  const float* steps = x.step + bucket * x.num_payloads;
  const float divisor = static_cast<float>(x.divisor), factor = 1 / divisor;
  const bool is_divided = x.num_payloads > 0 && x.divisor > 1, is_changed = x.grad || x.num_payloads > 0;
  const bool is_power = (x.divisor & (x.divisor - 1)) == 0;  // then the multiplication is exact too
  I largest = seti(0);
  const auto divided = [&](F a) {
    return !is_divided ? a : is_power ? mul(a, set(factor)) : div(a, set(divisor));
  };
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    __builtin_prefetch(x.signal + i + 512);
    if (x.grad) __builtin_prefetch(x.grad + i + 512);
    const F a = divided(summed<kCodec, true>(x, steps, i, 16));
    if (is_changed) store(x.signal + i, a);
    largest = mostu(largest, band(bits(a), seti(kMagnitude)));
  }
  if (i < end) {
    const int num = static_cast<int>(end - i);
    const F a = divided(summed<kCodec, false>(x, steps, i, num));
    if (is_changed) store(x.signal + i, a, num);
    // Beyond the end, 0 times the step of a payload may be NaN.
    largest = mostu(largest, band(bits(select(mask_of((1u << num) - 1), a, set(0))), seti(kMagnitude)));
  }
  return largest_of(largest);
}

// What a code is of a bucket whose scale is neither extreme nor not finite: y is finite, and its magnitude is at most
// that of the largest code, but for rounding. `step` is the bucket's. `value` becomes the code's.
template <Codec kCodec>
I code_of_block(F y, F step, F* value) {
  if constexpr (kCodec == Codec::int8) {
    const I code = to_int(y);
    *value = mul(to_float(code), step);
    return code;
  } else {
    constexpr int kShift = kCodec == Codec::e4m3 ? 20 : 21, kBias = kCodec == Codec::e4m3 ? 7 : 15;
    constexpr int kMantissa = 23 - kShift;
    const I sign = band(bits(y), seti(0x80000000u)), magnitude = band(bits(y), seti(kMagnitude));
    const F size = floats(magnitude);
    const I odd = band(shr<kShift>(magnitude), seti(1));
    const I rounded = addi(addi(magnitude, seti((1u << (kShift - 1)) - 1)), odd);
    const I normal = subi(shr<kShift>(rounded), seti(static_cast<uint32_t>(127 - kBias) << kMantissa));
    const I denormal = to_int(mul(size, power_of_two(kBias - 1 + kMantissa)));
    const M is_denormal = is_less(size, power_of_two(1 - kBias));
    const F found = select(is_denormal, mul(to_float(denormal), power_of_two(1 - kBias - kMantissa)),
                           floats(band(rounded, seti(~0u << kShift))));
    *value = mul(floats(bor(bits(found), sign)), step);
    return bor(selecti(is_denormal, denormal, normal), shr<24>(sign));
  }
}

// Writes the codes of a bucket, and with `keep` leaves the error in it. kPlain: the scale is neither extreme nor not
// finite, so that every element is finite and no product overflows or underflows.
template <Codec kCodec, bool kPlain>
void code_block(const Blocks& x, int64_t bucket, const float* prescale, const float* inverse, const float* step) {
  const int64_t begin = x.bounds[bucket], end = x.bounds[bucket + 1];
  // An 8-bit float is divided by 256 or 32,768 in value_of; here the step is, which is as exact.
  constexpr float kDown = kCodec == Codec::int8 ? 1.0f : kCodec == Codec::e4m3 ? 0x1p-8f : 0x1p-15f;
  const F inverses = set(*inverse), times = set(static_cast<float>(x.divisor));
  const F prescales = set(*prescale), steps = set(kPlain ? *step * kDown : *step);
  const auto coded = [&](F a, F* left) {
    if constexpr (kPlain) {
      F value;
      const I code = code_of_block<kCodec>(mul(a, inverses), steps, &value);
      *left = mul(sub(a, value), times);
      return code;
    } else {
      const I code = code_of<kCodec>(x.coding, mul(mul(finite_or_zero(a), prescales), inverses), seti(0));
      *left = mul(finite_or_zero(sub(a, mul(value_of<kCodec>(x.coding, band(code, seti(0xff))), steps))), times);
      return code;
    }
  };
  int64_t i = begin;
  F left;
  for (; i + 16 <= end; i += 16) {
    store_u8(x.bytes + i, coded(load(x.signal + i), &left));
    if (x.keep) store(x.signal + i, left);
  }
  if (i < end) {
    const int num = static_cast<int>(end - i);
    uint8_t last[16];
    store_u8(last, coded(load(x.signal + i, num), &left));
    std::memcpy(x.bytes + i, last, num);
    if (x.keep) store(x.signal + i, left, num);
  }
}

template <Codec kCodec>
void quantise_blocks(const Blocks& x, int64_t begin, int64_t end) {
  Numbers numbers(x.coding, 2);
  // One bucket is added up while the numbers of the one before it are computed.
  for (int64_t b = begin; b <= end; ++b) {
    if (b < end) {
      const uint32_t largest = sum_block<kCodec>(x, b);
      std::memcpy(x.scales + b, &largest, sizeof largest);
      numbers.set(b % 2, x.scales[b]);
    }
    if (b == begin) continue;
    const int64_t at = (b - 1) % 2;
    const float *prescale = numbers.prescale() + at, *inverse = numbers.inverse() + at, *step = numbers.step() + at;
    const bool is_plain = x.scales[b - 1] >= 0x1p-64f && x.scales[b - 1] <= 0x1p64f;
    if (is_plain)
      code_block<kCodec, true>(x, b - 1, prescale, inverse, step);
    else
      code_block<kCodec, false>(x, b - 1, prescale, inverse, step);
  }
}

// Quantises the buckets [begin, end).
inline void quantise_blocks(const Blocks& x, int64_t begin, int64_t end) {
  if (x.coding.codec == Codec::int8) return quantise_blocks<Codec::int8>(x, begin, end);
  if (x.coding.codec == Codec::e4m3) return quantise_blocks<Codec::e4m3>(x, begin, end);
  quantise_blocks<Codec::e5m2>(x, begin, end);
}
