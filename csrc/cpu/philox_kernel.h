// See philox.h. Compiled for each instruction set by each_isa.h.

// Writes the four words of the counters 16·tile … 16·tile + 15: one counter for each lane.
inline void philox(uint64_t key, uint64_t tile, I word[4]) {
  const uint64_t counter = 16 * tile;
  W x0 = wide(addi(seti(static_cast<uint32_t>(counter)), loadi(kLaneNumbers)));
  W x1 = wide(seti(static_cast<uint32_t>(counter >> 32))), x2 = wide(seti(0)), x3 = x2;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxBump0, key1 += kPhiloxBump1) {
    const W product0 = multiply(x0, kPhiloxFactor0), product1 = multiply(x2, kPhiloxFactor1);
    x0 = xor3(high(product1), x1, key0);
    x1 = product1;
    x2 = xor3(high(product0), x3, key1);
    x3 = product0;
  }
  word[0] = narrow(x0);
  word[1] = narrow(x1);
  word[2] = narrow(x2);
  word[3] = narrow(x3);
}

// Writes the 16 random bits of each element of a tile.
inline void random_tile(uint64_t key, uint64_t tile, uint16_t* out) {
  I word[4];
  philox(key, tile, word);
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    store_u16(out + 32 * w, word[w]);
    store_u16(out + 32 * w + 16, shr<16>(word[w]));
  }
}

// The random bits of a vector's elements, in ascending order.
class RandomBits {
 public:
  RandomBits(uint64_t key, const Positions& positions, int64_t begin)
      : key_(key), positions_(positions), cursor_(positions.cursor(begin)) {}

  // Those of the elements [i, i + num), a tile at most. Sixteen may be read from every one of them on.
  const uint16_t* at(int64_t i, int64_t num) {
    const int64_t run = cursor_.group_at(i);
    if (cursor_.is_whole(i, num)) return consecutive(positions_.of(run, i), num);
    for (int64_t done = 0; done < num;) {
      const int64_t next = cursor_.group_at(i + done), size = std::min(num - done, cursor_.stop() - (i + done));
      std::memcpy(joined_ + done, consecutive(positions_.of(next, i + done), size), size * sizeof *joined_);
      done += size;
    }
    return joined_;
  }

 private:
  // Where positions do not begin at a tile, each of its successors is used twice and computed once.
  const uint16_t* consecutive(int64_t position, int64_t num) {
    const int64_t tile = position / kRandomTile, skip = position % kRandomTile;
    if (tile != tile_) {
      if (has_next_ && tile == tile_ + 1)
        std::memcpy(two_, two_ + kRandomTile, kRandomTile * sizeof *two_);
      else
        random_tile(key_, static_cast<uint64_t>(tile), two_);
      tile_ = tile;
      has_next_ = false;
    }
    if (!has_next_ && skip + num > kRandomTile) {
      random_tile(key_, static_cast<uint64_t>(tile + 1), two_ + kRandomTile);
      has_next_ = true;
    }
    return two_ + skip;
  }

  uint64_t key_;
  const Positions& positions_;
  Cursor cursor_;
  int64_t tile_ = -1;
  bool has_next_ = false;
  alignas(64) uint16_t two_[2 * kRandomTile] = {};
  alignas(64) uint16_t joined_[kRandomTile + 16] = {};
};
