// See levels.h. Compiled for each instruction set by each_isa.h.

inline F power_of_two(int exponent) { return floats(seti(static_cast<uint32_t>(exponent + 127) << 23)); }

// The code of y = x / scale · largest, where x is of magnitude `scale` or less; `random` has 16 bits in each lane.
template <Codec kCodec>
I code_of(const Coding& coding, F y, I random) {
  const I sign = band(bits(y), seti(0x80000000u)), magnitude = band(bits(y), seti(kMagnitude));
  const F size = floats(magnitude);
  if constexpr (kCodec == Codec::int8) return to_int(floats(bor(bits(least(size, set(127))), sign)));
  if constexpr (kCodec == Codec::e4m3 || kCodec == Codec::e5m2) {
    constexpr int kShift = kCodec == Codec::e4m3 ? 20 : 21, kBias = kCodec == Codec::e4m3 ? 7 : 15;
    constexpr int kMantissa = 23 - kShift;
    const F most = set(kCodec == Codec::e4m3 ? 448.0f : 57344.0f);
    const I clamped = bits(least(size, most));
    const I odd = band(shr<kShift>(clamped), seti(1));
    const I rounded = addi(addi(clamped, seti((1u << (kShift - 1)) - 1)), odd);
    const I normal = subi(shr<kShift>(rounded), seti(static_cast<uint32_t>(127 - kBias) << kMantissa));
    const I denormal = to_int(mul(size, power_of_two(kBias - 1 + kMantissa)));
    return bor(selecti(is_less(size, power_of_two(1 - kBias)), denormal, normal), shr<24>(sign));
  }
  if constexpr (kCodec == Codec::e2m1) {
    // From 2^e on, and below 2 from 0 on, the values are 2^(e − 1) apart: so is what 1.5 · 2^(e + 22) can be added to.
    const F clamped = least(size, set(6));
    const I power = band(mostu(bits(clamped), seti(0x3f800000u)), seti(0x7f800000u));
    const I steps = bits(add(clamped, floats(addi(power, seti((22u << 23) + 0x400002u)))));
    return bor(band(addi(steps, shr<22>(power)), seti(7)), shr<28>(sign));  // 127 · 2 and the 2 above are a multiple of 8
  }
  if constexpr (kCodec == Codec::linear) {
    const F low = round_down(size), uniform = mul(add(to_float(random), set(0.5f)), set(0x1p-16f));
    const F level = least(select(is_less(uniform, sub(size, low)), add(low, set(1)), low), set(coding.levels));
    const I center = seti(static_cast<uint32_t>(coding.levels));
    return to_int(add(to_float(center), floats(bor(bits(level), sign))));
  }
  if constexpr (kCodec == Codec::natural || kCodec == Codec::power8) {
    const uint32_t offset = static_cast<uint32_t>(coding.offset);
    const I carried = addi(magnitude, addi(shl<7>(random), seti(64)));
    const I high = leastu(subi(shr<23>(carried), seti(offset)), seti(static_cast<uint32_t>(coding.levels)));
    const F uniform = mul(add(to_float(random), set(0.5f)), set(0x1p-16f));
    const F share = mul(size, power_of_two(126 - coding.offset));  // of the lowest level
    const I low = selecti(is_less(uniform, share), seti(1), seti(0));
    const I level = selecti(is_lessi(magnitude, seti((offset + 1) << 23)), low, high);
    if constexpr (kCodec == Codec::power8) return bor(level, shr<24>(sign));
    const I center = seti(static_cast<uint32_t>(coding.levels));
    return selecti(is_lessi(bits(y), seti(0)), subi(center, level), addi(center, level));
  }
  if constexpr (kCodec == Codec::power9) {
    const I carried = leastu(addi(magnitude, addi(shl<7>(random), seti(64))), seti(0x7f000000u));
    return shr<23>(mostu(carried, band(magnitude, seti(0x7f800000u))));
  }
  if constexpr (kCodec == Codec::tree) {
    if constexpr (kHasPermutations) return bor(num_below_127(kTree.level, magnitude), shr<24>(sign));
    const I cell = leastu(mostu(shr<Tree::kLow>(magnitude), seti(Tree::kFirst)), seti(Tree::kLast));
    const I found = gather(kTree.cell, subi(cell, seti(Tree::kFirst)));
    return bor(shr<Tree::kLow>(addi(found, band(magnitude, seti(Tree::kLowBits)))), shr<24>(sign));
  }
}

// x / scale · most of sixteen elements. The tree's has the sign of x, or that of 0 where x is NaN, whose sign depends on
// the processor.
template <Codec kCodec>
F scaled(F a, F inverse) {
  if constexpr (kCodec != Codec::tree) return mul(a, inverse);
  const I magnitude = band(bits(a), seti(kMagnitude)), sign = bxor(bits(a), magnitude);
  const I size = band(bits(div(floats(magnitude), inverse)), seti(kMagnitude));
  return floats(bor(size, selecti(is_lessi(seti(0x7f800000u), magnitude), seti(0), sign)));
}

// What a code stands for, as a multiple of the bucket's step. An 8-bit float is divided by 256 or 32,768, so that the
// step, the scale over the largest of them, is not below the smallest float32 where the scale is not.
template <Codec kCodec>
F value_of(const Coding& coding, I code) {
  if constexpr (kCodec == Codec::int8) return to_float(subi(bxor(code, seti(0x80)), seti(0x80)));
  if constexpr (kCodec == Codec::e4m3 || kCodec == Codec::e5m2) {
    constexpr int kShift = kCodec == Codec::e4m3 ? 20 : 21, kBias = kCodec == Codec::e4m3 ? 7 : 15;
    constexpr int kMantissa = 23 - kShift;
    constexpr int kDown = kCodec == Codec::e4m3 ? 8 : 15;
    const I magnitude = band(code, seti(0x7f)), sign = shl<24>(band(code, seti(0x80)));
    const F normal = floats(addi(shl<kShift>(magnitude), seti(static_cast<uint32_t>(127 - kBias - kDown) << 23)));
    const F denormal = mul(to_float(magnitude), power_of_two(1 - kBias - kMantissa - kDown));
    F size = select(is_lessi(magnitude, seti(1u << kMantissa)), denormal, normal);
    // What no element becomes: NaN, and e5m2's infinity.
    if constexpr (kCodec == Codec::e4m3) size = select(is_lessi(seti(0x7e), magnitude), set(NAN), size);
    if constexpr (kCodec == Codec::e5m2) {
      size = select(is_lessi(seti(0x7b), magnitude), set(INFINITY), size);
      size = select(is_lessi(seti(0x7c), magnitude), set(NAN), size);
    }
    return floats(bor(bits(size), sign));
  }
  if constexpr (kCodec == Codec::e2m1) {
    const I magnitude = band(code, seti(7)), sign = shl<28>(band(code, seti(8)));
    const F normal = floats(addi(shl<22>(magnitude), seti(126u << 23)));
    const F size = select(is_lessi(magnitude, seti(2)), mul(to_float(magnitude), set(0.5f)), normal);
    return floats(bor(bits(size), sign));
  }
  const I center = seti(static_cast<uint32_t>(coding.levels));
  if constexpr (kCodec == Codec::linear) return to_float(subi(code, center));
  if constexpr (kCodec == Codec::natural) {
    const I level = subi(code, center), negative = subi(seti(0), level);
    const M is_negative = is_lessi(level, seti(0));
    const I size = selecti(is_negative, negative, level);
    const F power = floats(shl<23>(addi(size, seti(static_cast<uint32_t>(coding.offset)))));
    const F value = select(is_lessi(size, seti(1)), set(0), power);
    return floats(bor(bits(value), selecti(is_negative, seti(0x80000000u), seti(0))));
  }
  if constexpr (kCodec == Codec::power8) {
    const I level = band(code, seti(0x7f)), sign = shl<24>(band(code, seti(0x80)));
    const F power = floats(shl<23>(addi(level, seti(static_cast<uint32_t>(coding.offset)))));
    return floats(bor(bits(select(is_lessi(level, seti(1)), set(0), power)), sign));
  }
  if constexpr (kCodec == Codec::power9) return floats(shl<23>(band(code, seti(0xff))));
  if constexpr (kCodec == Codec::tree) {
    const F size = look_up_128(kTree.value, band(code, seti(0x7f)));
    return floats(bor(bits(size), shl<24>(band(code, seti(0x80)))));
  }
}

// Packs the codes of a tile, or of its `num` first elements; `room` bytes may be written, beyond the tile's own too.
inline void pack_tile(const uint8_t* codes, int64_t num, int bits, uint8_t* bytes, [[maybe_unused]] int64_t room) {
#if SAGE_PEXT
  const uint64_t mask = lanes_mask(bits);
  int64_t i = 0;
  for (; i + 8 <= num && room >= 8; i += 8, bytes += bits, room -= bits) {
    uint64_t eight;
    std::memcpy(&eight, codes + i, 8);
    eight = _pext_u64(eight, mask);
    std::memcpy(bytes, &eight, 8);
  }
  codes += i;
  num -= i;
#endif
  pack_scalar(codes, num, bits, bytes);
}

// Quantises the elements [begin, end): writes their codes, and with `keep` leaves the error in the signal. `begin` is a
// multiple of a tile.
template <Codec kCodec>
void quantise_range(const Quantisation& x, int64_t begin, int64_t end) {
  constexpr bool kRandom = is_random(kCodec), kHasScale = kCodec != Codec::power9;
  const Coding& coding = x.coding;
  Cursor cursor(x.bounds, x.num_buckets, begin);
  RandomBits random_bits(x.key, *x.positions, begin);
  alignas(64) uint8_t codes[kRandomTile];
  for (int64_t tile = begin; tile < end; tile += kRandomTile) {
    const int64_t in_tile = std::min(kRandomTile, end - tile);
    const uint16_t* const random = kRandom ? random_bits.at(tile, in_tile) : nullptr;
    const auto random_at = [&](int64_t i) { return kRandom ? load_u16(random + (i - tile)) : seti(0); };
    for (int64_t i = tile; i < tile + in_tile; i += 16) {
      const int64_t num = tile + in_tile - i;
      __builtin_prefetch(x.signal + i + 512);
      if constexpr (kHasScale) {
        const int64_t bucket = cursor.group_at(i), stop = std::min(cursor.stop(), tile + in_tile);
        if (x.own_scales && i + 16 <= stop && x.prescale[bucket] == 1 && x.inverse[bucket] > 0) {
          // Then every element is finite: what is not makes the scale not finite. The tree does not mind.
          const F inverse = set(x.inverse[bucket]), step = set(x.step[bucket]);
          for (; i + 16 <= stop; i += 16) {
            __builtin_prefetch(x.signal + i + 512);
            const F a = load(x.signal + i);
            const I code = code_of<kCodec>(coding, scaled<kCodec>(a, inverse), random_at(i));
            store_u8(codes + (i - tile), code);
            if (!x.keep) continue;
            const F value = value_of<kCodec>(coding, band(code, seti(0xff)));
            store(x.signal + i, finite_or_zero(sub(a, mul(value, step))));
          }
          i -= 16;
          continue;
        }
      }
      const F a = load_some(x.signal + i, num);
      F y = a, step = set(1);
      if constexpr (kHasScale) {
        const int64_t bucket = cursor.group_at(i);
        const bool whole = num >= 16 && cursor.is_whole(i);
        const auto number = [&](const float* of) { return whole ? set(of[bucket]) : of_groups(of, cursor, i, num); };
        if constexpr (kCodec != Codec::tree) y = finite_or_zero(a);
        if (x.limits) {
          const F limit = number(x.limits);
          const I size = bits(least(floats(band(bits(y), seti(kMagnitude))), limit));
          y = floats(bor(size, band(bits(y), seti(0x80000000u))));
        }
        y = scaled<kCodec>(mul(y, number(x.prescale)), number(x.inverse));
        step = number(x.step);
      }
      const I code = code_of<kCodec>(coding, y, random_at(i));
      store_u8(codes + (i - tile), code);
      if constexpr (kCodec == Codec::power9) {
        const uint32_t is_high = ~bits_of(is_less(a, set(0))) & (num >= 16 ? 0xffffu : (1u << num) - 1);
        uint8_t* at = x.bytes + x.numel + i / 8;
        at[0] = static_cast<uint8_t>(is_high);
        if (num > 8) at[1] = static_cast<uint8_t>(is_high >> 8);
      }
      if (x.keep) {
        F value = value_of<kCodec>(coding, band(code, seti(0xff)));
        if constexpr (kCodec == Codec::power9) value = select(is_less(a, set(0)), sub(set(0), value), value);
        store_some(x.signal + i, finite_or_zero(sub(a, mul(value, step))), num);
      }
    }
    if (coding.bits == 8)
      std::memcpy(x.bytes + tile, codes, in_tile);
    else
      pack_tile(codes, in_tile, coding.bits, x.bytes + tile / 8 * coding.bits,
                packed_bytes(end - tile, coding.bits));
  }
}

inline void quantise_range(const Quantisation& x, int64_t begin, int64_t end) {
  switch (x.coding.codec) {
    case Codec::int8:
      return quantise_range<Codec::int8>(x, begin, end);
    case Codec::e4m3:
      return quantise_range<Codec::e4m3>(x, begin, end);
    case Codec::e5m2:
      return quantise_range<Codec::e5m2>(x, begin, end);
    case Codec::linear:
      return quantise_range<Codec::linear>(x, begin, end);
    case Codec::natural:
      return quantise_range<Codec::natural>(x, begin, end);
    case Codec::power8:
      return quantise_range<Codec::power8>(x, begin, end);
    case Codec::power9:
      return quantise_range<Codec::power9>(x, begin, end);
    case Codec::e2m1:
      return quantise_range<Codec::e2m1>(x, begin, end);
    default:
      return quantise_range<Codec::tree>(x, begin, end);
  }
}

// out = Σ_w values_w / divisor for the elements [begin, end), added in the order of w to 0 or to what `out` holds.
template <Codec kCodec>
void average_range(const Average& x, int64_t begin, int64_t end) {
  const Coding& coding = x.coding;
  Cursor cursor(x.bounds, x.num_buckets, begin);
  const float divisor = static_cast<float>(x.divisor), factor = 1 / divisor;
  const bool is_power = (x.divisor & (x.divisor - 1)) == 0;  // then the multiplication is exact too
  const Unpacking unpacking(coding.bits);
  uint8_t last[kRandomTile + 16] = {};  // the codes at the end of a payload, with room to read beyond them
  for (int64_t tile = begin; tile < end; tile += kRandomTile) {
    const int64_t in_tile = std::min(kRandomTile, end - tile);
    F sum[kRandomTile / 16];
    for (int64_t v = 0; 16 * v < in_tile; ++v)
      sum[v] = x.added ? load_some(x.out + tile + 16 * v, in_tile - 16 * v) : set(0);
    for (int64_t w = 0; w < x.num_payloads; ++w) {
      const int64_t at = tile * coding.bits / 8;
      const uint8_t *payload = x.bytes + w * x.num_bytes, *codes = payload + at;
      const float* steps = x.step + w * x.num_buckets;
      const int64_t room = x.num_bytes - at;
      if (room < kRandomTile / 8 * coding.bits + 16) {
        std::memcpy(last, codes, std::min<int64_t>(room, sizeof last));
        codes = last;
      }
      Cursor here = cursor;
      const auto code_at = [&](int64_t v) {
        return coding.bits == 8 ? load_u8(codes + 16 * v) : unpacking.codes(codes + 2 * coding.bits * v);
      };
      for (int64_t v = 0; 16 * v < in_tile; ++v) {
        const int64_t i = tile + 16 * v, num = in_tile - 16 * v;
        if constexpr (kCodec != Codec::power9) {
          const int64_t bucket = here.group_at(i), whole = (std::min(here.stop(), tile + in_tile) - tile) / 16;
          if (v < whole) {
            const F step = set(steps[bucket]);
            for (; v < whole; ++v) sum[v] = add(sum[v], mul(value_of<kCodec>(coding, code_at(v)), step));
            --v;
            continue;
          }
        }
        F value = value_of<kCodec>(coding, code_at(v));
        if constexpr (kCodec == Codec::power9) {
          const uint8_t* at = payload + x.numel + i / 8;
          const uint32_t is_high = num > 8 ? at[0] | at[1] << 8 : at[0];
          value = select(mask_of(is_high), value, sub(set(0), value));
        } else {
          value = mul(value, of_groups(steps, here, i, num));
        }
        sum[v] = add(sum[v], value);
      }
    }
    cursor.group_at(tile);
    for (int64_t v = 0; 16 * v < in_tile; ++v) {
      const F mean = is_power ? mul(sum[v], set(factor)) : div(sum[v], set(divisor));
      if (x.streams && in_tile - 16 * v >= 16)
        stream(x.out + tile + 16 * v, mean);
      else
        store_some(x.out + tile + 16 * v, mean, in_tile - 16 * v);
    }
  }
  fence();
}

inline void average_range(const Average& x, int64_t begin, int64_t end) {
  switch (x.coding.codec) {
    case Codec::int8:
      return average_range<Codec::int8>(x, begin, end);
    case Codec::e4m3:
      return average_range<Codec::e4m3>(x, begin, end);
    case Codec::e5m2:
      return average_range<Codec::e5m2>(x, begin, end);
    case Codec::linear:
      return average_range<Codec::linear>(x, begin, end);
    case Codec::natural:
      return average_range<Codec::natural>(x, begin, end);
    case Codec::power8:
      return average_range<Codec::power8>(x, begin, end);
    case Codec::power9:
      return average_range<Codec::power9>(x, begin, end);
    case Codec::e2m1:
      return average_range<Codec::e2m1>(x, begin, end);
    default:
      return average_range<Codec::tree>(x, begin, end);
  }
}
