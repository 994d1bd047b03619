// See elias.h. Compiled for each instruction set by each_isa.h.

// Bit i is set if element i of 64 is not 0.
inline uint64_t nonzero_of(const int8_t* levels) {
  uint64_t set = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, levels + 8 * i, 8);
    eight = (((eight & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | eight) >> 7 & 0x0101010101010101u;
    set |= eight * 0x0102040810204080u >> 56 << 8 * i;
  }
  return set;
}

inline uint64_t nonzero_of(const int32_t* levels) {
  uint64_t set = 0;
  for (int i = 0; i < 4; ++i) {
    const I x = loadi(levels + 16 * i);
    const uint32_t here = bits_of(is_lessi(x, seti(0))) | bits_of(is_lessi(seti(0), x));
    set |= static_cast<uint64_t>(here) << 16 * i;
  }
  return set;
}

template <class T>
uint64_t nonzero_of(const T* levels, int64_t num) {
  T block[64] = {};
  std::memcpy(block, levels, num * sizeof(T));
  return nonzero_of(block);
}

// Bits that are written behind `at`, fewer than 8 of them held back. Always stores 8 bytes.
struct BitWriter {
  uint8_t* at;
  uint64_t held = 0;
  int num = 0;

  // Writes up to 56 bits.
  void put(Field field) {
    held |= field.bits << 1 << (63 - num - field.width);
    num += field.width;
    const uint64_t stored = __builtin_bswap64(held);
    std::memcpy(at, &stored, 8);
    at += num >> 3;
    held <<= num & 56;
    num &= 7;
  }
};

// Writes the levels of the elements whose bit is set; `before` is the last element written.
template <class T>
void put_levels(const T* levels, int64_t first, uint64_t set, int64_t& before, BitWriter& out) {
  for (; set; set &= set - 1) {
    const int64_t i = first + std::countr_zero(set), gap = i - before;
    before = i;
    const Field far = gap < kShortGap ? kGapCodes[gap] : elias_code(static_cast<uint32_t>(gap));
    const Field level = level_code(levels[i]);
    if constexpr (sizeof(T) == 1) {  // 39 and 15 bits at most
      out.put({far.bits << level.width | level.bits, far.width + level.width});
    } else {
      out.put(far);
      out.put(level);
    }
  }
}

template <class T>
bool is_least(const T* levels, int64_t n) {
  bool found = false;
  for (int64_t i = 0; i < n; ++i) found |= levels[i] == std::numeric_limits<T>::min();
  return found;
}

// Appends the stream of a group; returns its bits, or -1 if a level is below -kGreatest.
template <class T>
int64_t encode_group(const T* levels, int64_t n, Stream& stream) {
  stream.bytes.reserve(stream.size + kBlockRoom);
  BitWriter out{stream.bytes.data() + stream.size};
  int64_t before = -1;
  for (int64_t first = 0; first < n; first += 64) {
    const int64_t num = std::min<int64_t>(64, n - first), used = out.at - stream.bytes.data();
    if (sizeof(T) > 1 && is_least(levels + first, num)) return -1;
    stream.bytes.reserve(used + kBlockRoom);
    out.at = stream.bytes.data() + used;
    put_levels(levels, first, num == 64 ? nonzero_of(levels + first) : nonzero_of(levels + first, num), before, out);
  }
  out.put({});  // fills the last word with zeros
  const int64_t bits = 8 * (out.at - stream.bytes.data() - stream.size) + out.num;
  stream.size += 4 * words_of(bits);
  return bits;
}

// Returns the 64 bits from `at`; those behind the words are 0.
inline uint64_t bits_from(const uint32_t* words, int64_t num, int64_t at) {
  const int64_t i = at / 32;
  const uint64_t high = i < num ? words[i] : 0, low = i + 1 < num ? words[i + 1] : 0;
  const uint64_t next = i + 2 < num ? words[i + 2] : 0;
  return (high << 32 | low) << at % 32 | next >> 1 >> (31 - at % 32);
}

// Writes levels in ascending order, and zeros to all other elements, a block ahead of the last level.
template <class T>
struct Filler {
  T* levels;
  int64_t n;
  int64_t filled = 0;

  void fill_to(int64_t i) {
    if (i <= filled) return;
    const int64_t end = std::min(n, i + 2048);
    std::fill(levels + filled, levels + end, T{0});
    filled = end;
  }
};

// Decodes the stream of a group; returns false if it is not one, or if a level is outside T.
template <class T>
bool decode_group(const uint32_t* words, int64_t num_bits, int64_t n, T* levels) {
  const int64_t num = words_of(num_bits);
  Filler<T> fill{levels, n};
  int64_t at = 0, i = -1;
  while (at < num_bits) {
    // Far from both ends: up to three short triples at a time.
    while (at + 96 <= num_bits && i + 2 * kShortGap < n) {
      fill.fill_to(i + 2 * kShortGap);
      uint64_t two;
      std::memcpy(&two, words + at / 32, 8);
      const uint64_t bits = std::rotl(two, 32) << at % 32;  // 33 or more of them are the stream's
      const Triples first = kTriples[bits >> (64 - kPeek)];
      if (first.width == 0) break;
      for (int t = 0; t < 3; ++t) levels[i += first.gaps[t]] = static_cast<T>(first.levels[t]);
      at += first.width;
      const Triples second = kTriples[bits << first.width >> (64 - kPeek)];
      if (second.width == 0) break;
      for (int t = 0; t < 3; ++t) levels[i += second.gaps[t]] = static_cast<T>(second.levels[t]);
      at += second.width;
    }
    const Field gap = read_code(bits_from(words, num, at));
    const uint64_t bits = bits_from(words, num, at + gap.width);
    const Field magnitude = read_code(bits << 1);
    at += gap.width + 1 + magnitude.width;
    i += static_cast<int64_t>(gap.bits);
    if (gap.width == 0 || magnitude.width == 0 || at > num_bits || i >= n) return false;
    fill.fill_to(i + 1);
    const int64_t level = bits >> 63 ? -static_cast<int64_t>(magnitude.bits) : static_cast<int64_t>(magnitude.bits);
    if (sizeof(T) == 1 && static_cast<int8_t>(level) != level) return false;
    levels[i] = static_cast<T>(level);
  }
  fill.fill_to(n);
  return true;
}
