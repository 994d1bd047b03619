// See hadamard.h. Compiled for each instruction set by each_isa.h.

// Of lanes k apart, the sum in the lower and the difference in the higher one.
template <int k>
F butterfly(F a) {
  constexpr uint32_t kHigher = k == 1 ? 0xaaaa : k == 2 ? 0xcccc : k == 4 ? 0xf0f0 : 0xff00;
  const F other = across<k>(a);
  return select(mask_of(kHigher), sub(other, a), add(other, a));
}

// The same of registers 1, 2, 4, … apart, one after the other.
template <int kNum>
void mix(F (&v)[kNum]) {
#pragma GCC unroll 4
  for (int apart = 1; apart < kNum; apart *= 2) {
#pragma GCC unroll 16
    for (int k = 0; k < kNum; ++k) {
      if (k & apart) continue;
      const F a = v[k], b = v[k + apart];
      v[k] = add(a, b);
      v[k + apart] = sub(a, b);
    }
  }
}

inline F flipped(F a, uint32_t signs) {
  return floats(bxor(bits(a), selecti(mask_of(signs), seti(0x80000000u), seti(0))));
}

// A part of n elements, with the 16 signs of each register, which are applied before the butterflies or behind them.
struct Part {
  float* x;
  int64_t n;
  const uint16_t* signs;
  bool inverse;
  F factor;

  // What is stored of a register that begins at element i, when `apart` is the distance of its last butterflies.
  F left(F a, int64_t i, int64_t apart) const {
    if (2 * apart < n) return a;
    a = mul(a, factor);
    return inverse ? flipped(a, signs[i / 16]) : a;
  }
};

// Butterflies of elements 1, 2, 4 and 8 apart, and of kNum registers that lie one behind the other.
template <int kNum>
void begin_part(const Part& part) {
  for (int64_t i = 0; i < part.n; i += 16 * kNum) {
    F v[kNum];
    for (int k = 0; k < kNum; ++k) {
      F a = load(part.x + i + 16 * k);
      if (!part.inverse) a = flipped(a, part.signs[i / 16 + k]);
      v[k] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(a))));
    }
    mix(v);
    for (int k = 0; k < kNum; ++k) store(part.x + i + 16 * k, part.left(v[k], i + 16 * k, 8 * kNum));
  }
}

// Butterflies of elements that are apart, 2·apart, … kNum/2·apart apart.
template <int kNum>
void go_on(const Part& part, int64_t apart) {
  for (int64_t begin = 0; begin < part.n; begin += kNum * apart)
    for (int64_t i = begin; i < begin + apart; i += 16) {
      F v[kNum];
      for (int k = 0; k < kNum; ++k) v[k] = load(part.x + i + k * apart);
      mix(v);
      for (int k = 0; k < kNum; ++k)
        store(part.x + i + k * apart, part.left(v[k], i + k * apart, kNum / 2 * apart));
    }
}

inline void transform_part(const Part& part) {
  int64_t done = std::min<int64_t>(part.n, 256);  // elements that have been mixed with each other
  switch (done) {
    case 16:
      return begin_part<1>(part);
    case 32:
      return begin_part<2>(part);
    case 64:
      return begin_part<4>(part);
    case 128:
      return begin_part<8>(part);
    default:
      begin_part<16>(part);
  }
  while (done < part.n) {
    const int64_t times = std::min<int64_t>(part.n / done, 16);
    if (times == 2) go_on<2>(part, done);
    if (times == 4) go_on<4>(part, done);
    if (times == 8) go_on<8>(part, done);
    if (times == 16) go_on<16>(part, done);
    done *= times;
  }
}

// Transforms the buckets [begin, end).
inline void transform_buckets(const Hadamard& x, int64_t begin, int64_t end) {
  const Positions positions(0);
  const int64_t each = x.bucket / 16;
  RandomBits random(x.key, positions, begin * each);
  alignas(64) uint16_t signs[kMostInTransform / 16];
  for (int64_t b = begin; b < end; ++b) {
    float* a = x.x + x.bounds[b];
    const int64_t n = x.bounds[b + 1] - x.bounds[b], num = (n + 15) / 16;
    for (int64_t q = 0; q < num; q += kRandomTile) {
      const int64_t some = std::min(kRandomTile, num - q);
      std::memcpy(signs + q, random.at(b * each + q, some), some * sizeof *signs);
    }
    for (int64_t i = 0; i < n;) {
      const int64_t length = part_of(n - i);
      const uint16_t* own = signs + i / 16;
      if (length < 16)
        transform_few(a + i, length, static_cast<uint32_t>(*own) >> i % 16, x.inverse);
      else
        transform_part({a + i, length, own, x.inverse, set(orthonormal(length))});
      i += length;
    }
  }
}
