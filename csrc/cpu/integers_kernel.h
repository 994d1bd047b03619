// See integers.h. Compiled for each instruction set by each_isa.h.

// A table of up to 256 numbers, looked up in a register if there are no more than it has lanes.
template <bool kInRegister>
class Lookup {
 public:
  explicit Lookup(const void* all) : all_(static_cast<const uint8_t*>(all)), first_(loadi(all)) {}

  I at(I place) const {
    if constexpr (kInRegister) return bits(look_up(floats(first_), place));
    alignas(64) uint32_t places[16], found[16];
    storei(places, place);
    for (int l = 0; l < 16; ++l) std::memcpy(found + l, all_ + 4 * (places[l] & 0xff), 4);
    return loadi(found);
  }

 private:
  const uint8_t* all_;
  I first_;
};

// The numbers of the parts of sixteen elements, or of `num` at the end.
inline F of_parts(const float* numbers, Cursor& cursor, int64_t i, int64_t num) {
  const int64_t part = cursor.group_at(i);
  return num >= 16 && cursor.is_whole(i) ? set(numbers[part]) : of_groups(numbers, cursor, i, num);
}

// Quantises the elements [begin, end) of a share. `begin` is a multiple of a tile. kFast: all tables fit in registers, and
// a product takes the place of a quotient.
template <bool kFast>
void quantise_share(const IntegerRows& x, int64_t share, int64_t begin, int64_t end) {
  const int64_t first = share * x.length;
  float* const signal = x.signal + first;
  uint8_t* const bytes = x.bytes + share * x.num_bytes;
  Cursor cursor(x.bounds, x.num_parts, first + begin);
  RandomBits random_bits(x.key, *x.positions, first + begin);
  const Lookup<kFast> number(x.table.number), low(x.table.low), distance(x.table.distance);
  const F most = set(static_cast<float>(x.table.most)), half = set(static_cast<float>(x.table.most) / 2);
  const I last = seti(static_cast<uint32_t>(x.table.most - 1));
  const int bits_each = x.bits();
  alignas(64) uint8_t codes[kRandomTile];
  for (int64_t tile = begin; tile < end; tile += kRandomTile) {
    const int64_t in_tile = std::min(kRandomTile, end - tile);
    const uint16_t* const random = random_bits.at(first + tile, in_tile);
    for (int64_t i = tile; i < tile + in_tile; i += 16) {
      const int64_t num = tile + in_tile - i;
      __builtin_prefetch(signal + i + 512);
      const F step = of_parts(x.step, cursor, first + i, num), a = load_some(signal + i, num), y = div(a, step);
      const M is_nan = is_lessi(seti(0x7f800000u), band(bits(y), seti(kMagnitude)));
      F place = least(add(select(is_nan, set(0), y), half), most);
      place = select(is_less(place, set(0)), set(0), place);
      const I at = leastu(to_int(round_down(place)), last);
      const F below = floats(low.at(at)), apart = floats(distance.at(at)), above = sub(place, below);
      const F uniform = mul(add(to_float(load_u16(random + (i - tile))), set(0.5f)), set(0x1p-16f));
      const M is_up = kFast ? is_less(mul(uniform, apart), above) : is_less(uniform, div(above, apart));
      const F integer = select(is_up, add(below, apart), below);
      const I code = x.packed ? addi(number.at(at), selecti(is_up, seti(1), seti(0))) : to_int(integer);
      store_u8(codes + (i - tile), code);
      if (x.keep) store_some(signal + i, finite_or_zero(sub(a, mul(sub(integer, half), step))), num);
    }
    if (x.packed)
      pack_tile(codes, in_tile, bits_each, bytes + tile / 8 * bits_each, packed_bytes(end - tile, bits_each));
    else
      std::memcpy(bytes + tile, codes, in_tile);
  }
}

inline void quantise_share(const IntegerRows& x, int64_t share, int64_t begin, int64_t end) {
  if (begin == end) return;
  if (x.table.most <= IntegerTable::kInRegister && x.table.multiplies)
    quantise_share<true>(x, share, begin, end);
  else
    quantise_share<false>(x, share, begin, end);
}

// Sixteen codes at a time of a tile of packed ones; the bytes beyond their end are not read.
class TileCodes {
 public:
  TileCodes(const Unpacking& unpacking, int bits, const uint8_t* bytes, int64_t room)
      : unpacking_(unpacking), bits_(bits), bytes_(bytes) {
    if (room >= kRandomTile / 8 * bits + 16) return;
    std::memset(last_, 0, sizeof last_);
    std::memcpy(last_, bytes, std::min<int64_t>(room, sizeof last_));
    bytes_ = last_;
  }

  I at(int64_t v) const { return bits_ == 8 ? load_u8(bytes_ + 16 * v) : unpacking_.codes(bytes_ + 2 * bits_ * v); }

 private:
  const Unpacking& unpacking_;
  int bits_;
  const uint8_t* bytes_;
  uint8_t last_[kRandomTile + 16];
};

// Writes the sums of the numbers [begin, end) of all rows.
template <bool kInRegister>
void sum_rows(const IntegerSums& x, int64_t begin, int64_t end) {
  const int bits_each = x.table.bits;
  const Unpacking unpacking(bits_each);
  const Lookup<kInRegister> level(x.table.level);
  alignas(64) uint8_t plane[kRandomTile];
  for (int64_t tile = begin; tile < end; tile += kRandomTile) {
    const int64_t in_tile = std::min(kRandomTile, end - tile), at = tile / 8 * bits_each;
    I sum[kRandomTile / 16];
    for (I& lanes : sum) lanes = seti(0);
    for (int64_t w = 0; w < x.num_rows; ++w) {
      const TileCodes codes(unpacking, bits_each, x.bytes + w * x.num_bytes + at, x.num_bytes - at);
      for (int64_t v = 0; 16 * v < in_tile; ++v) sum[v] = addi(sum[v], level.at(codes.at(v)));
    }
    for (int p = 0; p < x.planes.num(); ++p) {
      const int width = x.planes.width(p);
      for (int64_t v = 0; 16 * v < in_tile; ++v) {
        store_u8(plane + 16 * v, band(sum[v], seti(0xff)));
        sum[v] = shr<8>(sum[v]);
      }
      uint8_t* const to = x.out + x.planes.begin(p);
      if (width == 8)
        std::memcpy(to + tile, plane, in_tile);
      else
        pack_tile(plane, in_tile, width, to + tile / 8 * width, packed_bytes(end - tile, width));
    }
  }
}

inline void sum_rows(const IntegerSums& x, int64_t begin, int64_t end) {
  if (x.table.num <= IntegerTable::kInRegister)
    sum_rows<true>(x, begin, end);
  else
    sum_rows<false>(x, begin, end);
}

// Writes the values of the sums [begin, end) of a share.
inline void average_share(const IntegerMeans& x, int64_t share, int64_t begin, int64_t end) {
  if (begin == end) return;
  const int64_t first = share * x.planes.n, num_bytes = x.planes.num_bytes();
  const uint8_t* const row = x.bytes + share * num_bytes;
  float* const out = x.out + first;
  Cursor cursor(x.bounds, x.num_parts, first + begin);
  const float divisor = static_cast<float>(2 * x.num), factor = 1 / divisor;
  const bool is_power = (x.num & (x.num - 1)) == 0;  // then the multiplication is exact too
  const I most = seti(static_cast<uint32_t>(x.num * x.most));
  const Unpacking whole(8), high(x.planes.width(x.planes.num() - 1));
  for (int64_t tile = begin; tile < end; tile += kRandomTile) {
    const int64_t in_tile = std::min(kRandomTile, end - tile);
    I sum[kRandomTile / 16];
    for (I& lanes : sum) lanes = seti(0);
    for (int p = x.planes.num() - 1; p >= 0; --p) {
      const int width = x.planes.width(p);
      const int64_t at = x.planes.begin(p) + tile / 8 * width;
      const TileCodes codes(width == 8 ? whole : high, width, row + at, num_bytes - at);
      for (int64_t v = 0; 16 * v < in_tile; ++v) sum[v] = bor(shl<8>(sum[v]), codes.at(v));
    }
    for (int64_t v = 0; 16 * v < in_tile; ++v) {
      const int64_t i = tile + 16 * v, num = in_tile - 16 * v;
      const F doubled = to_float(subi(shl<1>(sum[v]), most));
      const F mean = is_power ? mul(doubled, set(factor)) : div(doubled, set(divisor));
      store_some(out + i, mul(mean, of_parts(x.step, cursor, first + i, num)), num);
    }
  }
}
