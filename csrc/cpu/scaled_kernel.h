// See scaled.h. Compiled for each instruction set by each_isa.h.

// The numbers of sixteen blocks, or of `num`, that follow from their scales, as `Numbers` has them.
struct BlockNumbers {
  alignas(64) float prescale[16];
  alignas(64) float inverse[16];
  alignas(64) float step[16];
  uint32_t plain;  // bit l: the scale of block l is neither extreme, nor 0, nor not finite

  BlockNumbers(const Coding& coding, const float* scales, int64_t num) {
    const F scale = load_some(scales, num);
    const M is_tiny = is_less(scale, set(0x1p-64f)), is_huge = is_less(set(0x1p64f), scale);
    const M is_some = is_less(set(0), scale), is_finite = is_lessi(bits(scale), seti(0x7f800000u));
    const F pre = select(is_tiny, set(0x1p64f), select(is_huge, set(0x1p-64f), set(1)));
    const F inverses = select(is_finite, div(set(coding.most()), mul(scale, pre)), set(0));
    store(prescale, pre);
    store(inverse, select(is_some, inverses, set(0)));
    store(step, div(scale, set(coding.unit())));
    plain = bits_of(is_some) & ~bits_of(is_tiny) & ~bits_of(is_huge);
  }
};

// Where codes go: those of 8 bits to their places, those of 4 bits into a buffer that is packed when it is full.
template <Codec kCodec>
class Codes {
 public:
  Codes(const ScaledBlocks& x, int64_t begin, int64_t end) : bytes_(x.bytes), base_(begin), end_(end) {}

  // Takes the first `num` codes, of the elements from i on, which must follow those before.
  void put(int64_t i, I code, int64_t num) {
    if constexpr (kCodec != Codec::e2m1) {
      if (num == 16) return store_u8(bytes_ + i, code);
      store_u8(codes_, code);
      std::memcpy(bytes_ + i, codes_, num);
    } else {
      store_u8(codes_ + (i - base_), code);
      if (i + num - base_ < kPacked) return;
      pack(kPacked);
      std::memcpy(codes_, codes_ + kPacked, 16);
      base_ += kPacked;
    }
  }

  void finish() {
    if constexpr (kCodec == Codec::e2m1) pack(end_ - base_);
  }

 private:
  void pack(int64_t num) { pack_tile(codes_, num, 4, bytes_ + base_ / 2, packed_bytes(end_ - base_, 4)); }

  uint8_t* bytes_;
  int64_t base_, end_;
  alignas(64) uint8_t codes_[kPacked + 32];
};

// What is the same for all blocks.
template <Codec kCodec>
struct Constants {
  const Coding& coding;
  F values = load(kValuesOfE2m1), most = set(kCodec == Codec::e4m3 ? 448.0f : 57344.0f);
};

// The code of an element, and its error. kPlain: the scale is neither extreme, nor 0, nor not finite.
template <Codec kCodec, bool kPlain>
I scaled_code(const Constants<kCodec>& x, F a, F prescale, F inverse, F step, F* left) {
  const M is_finite = is_lessi(band(bits(a), seti(kMagnitude)), seti(0x7f800000u));
  const F finite = select(is_finite, a, set(0));
  if constexpr (!kPlain) {
    const I code = code_of<kCodec>(x.coding, mul(mul(finite, prescale), inverse), seti(0));
    *left = finite_or_zero(sub(a, mul(value_of<kCodec>(x.coding, band(code, seti(0xff))), step)));
    return code;
  } else if constexpr (kCodec == Codec::e2m1) {
    const I code = code_of<kCodec>(x.coding, mul(finite, inverse), seti(0));
    *left = select(is_finite, sub(a, mul(look_up(x.values, code), step)), set(0));
    return code;
  } else {
    const F y = mul(finite, inverse), size = least(floats(band(bits(y), seti(kMagnitude))), x.most);
    F value;
    const I code = code_of_block<kCodec>(floats(bor(bits(size), band(bits(y), seti(0x80000000u)))), step, &value);
    *left = select(is_finite, sub(a, value), set(0));
    return code;
  }
}

// The codes of elements [i, end), which are of one block, number l of those of `numbers`.
template <Codec kCodec, bool kPlain>
inline __attribute__((always_inline)) void quantise_part(const ScaledBlocks& x, const Constants<kCodec>& constants,
                                                         Codes<kCodec>& codes, const BlockNumbers& numbers, int l, int64_t i,
                                                         int64_t end) {
  // An 8-bit float is divided by 256 or 32,768 in value_of; in code_of_block the step is, which is as exact.
  constexpr float kDown = !kPlain || kCodec == Codec::e2m1 ? 1.0f : kCodec == Codec::e4m3 ? 0x1p-8f : 0x1p-15f;
  const F prescale = set(numbers.prescale[l]), inverse = set(numbers.inverse[l]), step = set(numbers.step[l] * kDown);
  F left;
  for (; i + 16 <= end; i += 16) {
    __builtin_prefetch(x.signal + i + 512);
    const I code = scaled_code<kCodec, kPlain>(constants, load(x.signal + i), prescale, inverse, step, &left);
    if (x.keep) store(x.signal + i, left);
    codes.put(i, code, 16);
  }
  if (i < end) {
    const int num = static_cast<int>(end - i);
    const I code = scaled_code<kCodec, kPlain>(constants, load(x.signal + i, num), prescale, inverse, step, &left);
    if (x.keep) store(x.signal + i, left, num);
    codes.put(i, code, num);
  }
}

// Quantises the elements [begin, end); `begin` is a multiple of a tile, and may be within a block.
template <Codec kCodec>
void quantise_scaled(const ScaledBlocks& x, int64_t begin, int64_t end) {
  Codes<kCodec> codes(x, begin, end);
  const Constants<kCodec> constants{x.coding};
  Cursor cursor(x.bounds, x.num_groups, begin);
  for (int64_t i = begin; i < end;) {
    const int64_t g = cursor.group_at(i), first = x.bounds[g], last = std::min(cursor.stop(), end);
    const int64_t num_blocks = x.firsts[g + 1] - x.firsts[g];
    for (int64_t b = (i - first) / x.block; i < last; b += 16) {
      const BlockNumbers numbers(x.coding, x.scales + x.firsts[g] + b, num_blocks - b);
      if (numbers.plain == 0xffff && i == first + b * x.block && i + 16 * x.block <= last) {
        for (int l = 0; l < 16; ++l, i += x.block)
          quantise_part<kCodec, true>(x, constants, codes, numbers, l, i, i + x.block);
        continue;
      }
      for (int l = 0; l < 16 && i < last; ++l) {
        const int64_t stop = std::min(first + (b + l + 1) * x.block, last);
        if (numbers.plain >> l & 1)
          quantise_part<kCodec, true>(x, constants, codes, numbers, l, i, stop);
        else
          quantise_part<kCodec, false>(x, constants, codes, numbers, l, i, stop);
        i = stop;
      }
    }
  }
  codes.finish();
}

inline void quantise_scaled(const ScaledBlocks& x, int64_t begin, int64_t end) {
  if (x.coding.codec == Codec::e4m3) return quantise_scaled<Codec::e4m3>(x, begin, end);
  if (x.coding.codec == Codec::e5m2) return quantise_scaled<Codec::e5m2>(x, begin, end);
  quantise_scaled<Codec::e2m1>(x, begin, end);
}

// The values of elements [i, end), which are of one block, added and divided.
template <Codec kCodec>
inline __attribute__((always_inline)) void average_part(const ScaledValues& x, const Unpacking& unpacking, F values, F step,
                                                        F divisor, F factor, int64_t num_bytes, int64_t i, int64_t end) {
  const bool is_power = (x.divisor & (x.divisor - 1)) == 0;  // then the multiplication is exact too
  for (; i < end; i += 16) {
    const int64_t at = kCodec == Codec::e2m1 ? i / 2 : i, room = num_bytes - at, num = end - i;
    const uint8_t* codes = x.bytes + at;
    uint8_t last[16];
    if (room < 16) codes = static_cast<const uint8_t*>(std::memcpy(last, codes, room));
    F value;
    if constexpr (kCodec == Codec::e2m1)
      value = look_up(values, unpacking.codes(codes));
    else
      value = value_of<kCodec>(x.coding, load_u8(codes));
    const F sum = add(x.added ? load_some(x.out + i, num) : set(0), mul(value, step));
    const F mean = is_power ? mul(sum, factor) : div(sum, divisor);
    if (x.streams && num >= 16 && reinterpret_cast<uintptr_t>(x.out + i) % 64 == 0)
      stream(x.out + i, mean);
    else
      store_some(x.out + i, mean, num);
  }
}

template <Codec kCodec>
void average_scaled(const ScaledValues& x, int64_t begin, int64_t end) {
  Cursor cursor(x.bounds, x.num_groups, begin);
  const Unpacking unpacking(x.coding.bits);
  const F values = load(kValuesOfE2m1), unit = set(x.coding.unit());
  const float times = static_cast<float>(x.divisor);
  const F divisor = set(times), factor = set(1 / times);
  const int64_t num_bytes = x.coding.num_bytes(x.numel);
  for (int64_t i = begin; i < end;) {
    const int64_t g = cursor.group_at(i), first = x.bounds[g], last = std::min(cursor.stop(), end);
    const int64_t num_blocks = x.firsts[g + 1] - x.firsts[g];
    for (int64_t b = (i - first) / x.block; i < last; b += 16) {
      alignas(64) float step[16];
      store(step, div(load_some(x.scales + x.firsts[g] + b, num_blocks - b), unit));
      for (int l = 0; l < 16 && i < last; ++l) {
        const int64_t stop = std::min(first + (b + l + 1) * x.block, last);
        average_part<kCodec>(x, unpacking, values, set(step[l]), divisor, factor, num_bytes, i, stop);
        i = stop;
      }
    }
  }
  fence();
}

inline void average_scaled(const ScaledValues& x, int64_t begin, int64_t end) {
  if (x.coding.codec == Codec::e4m3) return average_scaled<Codec::e4m3>(x, begin, end);
  if (x.coding.codec == Codec::e5m2) return average_scaled<Codec::e5m2>(x, begin, end);
  average_scaled<Codec::e2m1>(x, begin, end);
}
