// See microscales.h. Compiled for each instruction set by each_isa.h.

// The magnitudes of sixteen elements of the signal, after the gradient is added.
inline I magnitudes(const LargestOfBlocks& x, int64_t i) {
  __builtin_prefetch(x.signal + i + 512);
  F a = load(x.signal + i);
  if (x.grad) {
    __builtin_prefetch(x.grad + i + 512);
    a = add(a, load(x.grad + i));
    store(x.signal + i, a);
  }
  return band(bits(a), seti(kMagnitude));
}

// The same of `num` elements; the other lanes are 0.
inline I magnitudes(const LargestOfBlocks& x, int64_t i, int num) {
  F a = load(x.signal + i, num);
  if (x.grad) {
    a = add(a, load(x.grad + i, num));
    store(x.signal + i, a, num);
  }
  return band(bits(a), seti(kMagnitude));
}

// The larger one of lanes l and l ^ k: of a where bit k of l is 0, and of b where it is 1.
template <int k>
I larger(I a, I b) {
  const M low = mask_of(k == 1 ? 0x5555 : k == 2 ? 0x3333 : k == 4 ? 0x0f0f : 0x00ff);
  return mostu(selecti(low, a, b), bits(across<k>(floats(selecti(low, b, a)))));
}

// The largest of 2k blocks of a multiple of 16 elements, from element i on: lane l has a part of block l % 2k.
template <int k>
I largest_of_each(const LargestOfBlocks& x, int64_t i) {
  if constexpr (k == 0) {
    I most = magnitudes(x, i);
    for (int64_t j = 16; j < x.block; j += 16) most = mostu(most, magnitudes(x, i + j));
    return most;
  } else {
    const I a = largest_of_each<k / 2>(x, i);
    return larger<k>(a, largest_of_each<k / 2>(x, i + k * x.block));
  }
}

inline uint32_t largest_of_one(const LargestOfBlocks& x, int64_t i, int64_t end) {
  I most = seti(0);
  for (; i + 16 <= end; i += 16) most = mostu(most, magnitudes(x, i));
  if (i < end) most = mostu(most, magnitudes(x, i, static_cast<int>(end - i)));
  return largest_of(most);
}

// The largest of the blocks [begin, end): of sixteen at once where they are whole and of whole registers.
inline void largest_of_blocks(const LargestOfBlocks& x, int64_t begin, int64_t end) {
  Cursor cursor(x.firsts, x.num_groups, begin);
  for (int64_t b = begin; b < end;) {
    const int64_t g = cursor.group_at(b), stop = std::min(cursor.stop(), end), last = x.bounds[g + 1];
    int64_t i = x.bounds[g] + (b - x.firsts[g]) * x.block;
    if (x.block % 16 == 0)
      for (; b + 16 <= stop && i + 16 * x.block <= last; b += 16, i += 16 * x.block) {
        const I most = largest_of_each<8>(x, i);
        storei(x.largest + b, selecti(is_lessi(most, seti(kInfinite)), most, seti(kNan)));
      }
    for (; b < stop; ++b, i += x.block) {
      const uint32_t most = largest_of_one(x, i, std::min(i + x.block, last)), found = most < kInfinite ? most : kNan;
      std::memcpy(x.largest + b, &found, sizeof found);
    }
  }
}

// The largest of `num` numbers that are finite; 0 if none is.
inline float largest_finite(const float* x, int64_t num) {
  I most = seti(0);
  for (int64_t i = 0; i < num; i += 16) most = mostu(most, bits(finite_or_zero(load_some(x + i, num - i))));
  const uint32_t found = largest_of(most);
  float largest;
  std::memcpy(&largest, &found, sizeof largest);
  return largest;
}

// The scales of `num` blocks, at most sixteen, whose s have these codes.
inline void store_scales(float* scales, I code, F tensor, int64_t num) {
  const F share = mul(value_of<Codec::e4m3>(Coding(Codec::e4m3, 1), code), set(256));  // which value_of divides by
  store_some(scales, mul(mul(share, tensor), set(4)), num);
}

// The s of the blocks [begin, end), and their scales: s is nearest to m/(6·t), at most 448; 0 where it is 0/0.
inline void encode_shares(const TensorScales& x, int64_t begin, int64_t end) {
  const Coding coding(Codec::e4m3, 1);
  Cursor cursor(x.bounds, x.num_groups, begin);
  for (int64_t b = begin; b < end;) {
    const F tensor = set(x.tensor[cursor.group_at(b)]);
    for (const int64_t stop = std::min(cursor.stop(), end); b < stop; b += 16) {
      const int64_t num = std::min<int64_t>(16, stop - b);
      const F most = load_some(x.largest + b, num), share = div(div(most, set(kLargestE2m1)), tensor);
      const F limited = select(is_less(set(0), share), least(share, set(kLargestE4m3)), set(0));
      const I code = band(code_of<Codec::e4m3>(coding, limited, seti(0)), seti(0xff));
      const I found = selecti(is_lessi(seti(kInfinite), bits(most)), seti(0x7f), code);  // NaN
      uint8_t last[16];
      store_u8(last, found);
      std::memcpy(x.shares + b, last, num);
      store_scales(x.scales + b, found, tensor, num);
    }
    b = std::min(cursor.stop(), end);
  }
}

inline void decode_shares(const TensorScales& x, int64_t begin, int64_t end) {
  Cursor cursor(x.bounds, x.num_groups, begin);
  for (int64_t b = begin; b < end;) {
    const F tensor = set(x.tensor[cursor.group_at(b)]);
    for (const int64_t stop = std::min(cursor.stop(), end); b < stop; b += 16) {
      const int64_t num = std::min<int64_t>(16, stop - b);
      uint8_t last[16] = {};
      std::memcpy(last, x.shares + b, num);
      store_scales(x.scales + b, load_u8(last), tensor, num);
    }
    b = std::min(cursor.stop(), end);
  }
}
