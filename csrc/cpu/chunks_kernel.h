// See chunks.h. Compiled for each instruction set by each_isa.h.

constexpr int64_t kMostMaxima = 16;  // registers whose maximum is taken

// Numbers below 2^31 in whole registers; those that fill up the last one are 0.
struct Magnitudes {
  const uint32_t* x;
  int64_t num;  // a multiple of 16

  // How many are at or above a limit.
  int64_t count(uint32_t limit) const {
    const I under = seti(limit - 1);
    int64_t found = 0;
    for (int64_t i = 0; i < num; i += 16) found += __builtin_popcount(bits_of(is_lessi(under, loadi(x + i))));
    return found;
  }

  uint32_t largest() const {
    I most = seti(0);
    for (int64_t i = 0; i < num; i += 16) most = mostu(most, loadi(x + i));
    return largest_of(most);
  }

  uint32_t smallest() const {  // the largest complement's complement
    I most = seti(0);
    for (int64_t i = 0; i < num; i += 16) most = mostu(most, bxor(loadi(x + i), seti(kMagnitude)));
    return largest_of(most) ^ kMagnitude;
  }

  // A number that at least k are at or above: the first bits of the k-th largest, `num_bits` behind those that the largest
  // and `low`, which is at most the k-th, have in common. With all bits it is the k-th, or exactly k are at or above it.
  uint32_t limit_of(int64_t k, uint32_t low, int num_bits) const {
    const uint32_t most = largest();
    int bit = std::bit_width(low ^ most);
    uint32_t found = most >> bit << bit;
    for (const int stop = std::max(0, bit - num_bits); bit-- > stop;) {
      const int64_t above = count(found | 1u << bit);
      if (above >= k) found |= 1u << bit;
      if (above == k) break;
    }
    return found;
  }
};

// Writes the places of the bits that are set, and up to three numbers more; returns how many are set.
inline int64_t list_bits(uint64_t word, int32_t base, int32_t* out) {
  const int64_t num = __builtin_popcountll(word);
  int64_t done = 0;
  do {  // four at once: few words have more, and whether they have one is hard to predict
    for (int q = 0; q < 4; ++q) {
      out[done + q] = base + __builtin_ctzll(word | uint64_t{1} << 63);
      word &= word - 1;
    }
    done += 4;
  } while (done < num);
  return num;
}

// What a thread needs for a chunk.
struct ChunkRoom {
  alignas(64) uint32_t magnitudes[kMostInChunk];
  alignas(64) uint32_t maxima[kMostInChunk / 2];
  alignas(64) uint32_t candidates[kMostInChunk];
  int32_t positions[kMostInChunk + 4];
};

// Reads a chunk; returns the number of its elements, filled up to whole rows with zeros.
inline int64_t read_chunk(const float* x, const Chunk& chunk, uint32_t* magnitudes) {
  const I mask = seti(kMagnitude);
  const float* row = x + chunk.first;
  int64_t at = 0;
  for (; at + kRowInChunk <= chunk.length; at += kRowInChunk, row += chunk.stride)
    for (int64_t i = 0; i < kRowInChunk; i += 16) storei(magnitudes + at + i, band(bits(load(row + i)), mask));
  if (at == chunk.length) return at;
  for (int64_t i = 0; i < kRowInChunk; i += 16) {
    const int64_t left = chunk.length - at - i;
    storei(magnitudes + at + i, left <= 0 ? seti(0) : band(bits(load_some(row + i, left)), mask));
  }
  return at + kRowInChunk;
}

// Asks for the lines of a chunk, whose rows the processor does not foresee where they are apart.
inline void fetch_chunk(const float* x, const Chunk& chunk) {
  for (int64_t at = 0; at < chunk.length; at += 16) __builtin_prefetch(x + element(chunk, at), 0, 2);
}

// The maxima of `each` neighbouring registers.
inline Magnitudes maxima_of(const Magnitudes& all, int64_t each, uint32_t* out) {
  if (each == 1) return all;
  int64_t num = 0;
  for (int64_t i = 0; i < all.num; i += 16 * each, num += 16) {
    I most = loadi(all.x + i);
    for (int64_t j = i + 16; j < std::min(i + 16 * each, all.num); j += 16) most = mostu(most, loadi(all.x + j));
    storei(out + num, most);
  }
  return {out, num};
}

// Writes the positions of the k largest elements; k is at least 1 and less than the chunk's length.
inline void find_in_chunk(const float* x, const Chunk& chunk, int64_t k, ChunkRoom& room, int32_t* out) {
  const Magnitudes all{room.magnitudes, read_chunk(x, chunk, room.magnitudes)};
  int64_t each = 1;
  while (each < kMostMaxima && all.num / (2 * each) >= 4 * k) each *= 2;
  const Magnitudes maxima = maxima_of(all, each, room.maxima);
  const uint32_t low = maxima.limit_of(k, maxima.smallest(), 10);
  const I under = seti(low - 1);
  int64_t num = 0;
  for (int64_t at = 0; at < all.num; at += 64) {
    uint64_t word = 0;
    for (int64_t i = 0; i < 64; i += 16)
      word |= static_cast<uint64_t>(bits_of(is_lessi(under, loadi(all.x + at + i)))) << i;
    num += list_bits(word, static_cast<int32_t>(at), room.positions + num);
  }
  const int64_t padded = (num + 15) / 16 * 16;
  for (int64_t i = 0; i < num; ++i) room.candidates[i] = all.x[room.positions[i]];
  std::fill(room.candidates + num, room.candidates + padded, 0u);
  const Magnitudes candidates{room.candidates, padded};
  uint32_t limit = low;
  int64_t ties = num;  // candidates equal to the limit that are taken, the first of them
  if (num > k) {
    limit = candidates.limit_of(k, low, 31);
    ties = k - candidates.count(limit + 1);
  }
  for (int64_t i = 0, size = 0; size < k; ++i) {  // without a branch: which are taken is hard to predict
    const uint32_t own = room.candidates[i];
    const int64_t is_tie = own == limit;
    out[size] = room.positions[i];
    size += (own > limit) | (is_tie & (ties > 0));
    ties -= is_tie;
  }
}

// The chunks [begin, end).
inline void take_largest(const Chunks& x, int64_t begin, int64_t end) {
  ChunkRoom room;
  for (int64_t p = begin; p < end; ++p) {
    const Chunk& chunk = x.chunks[p];
    const int64_t k = (p + 1 < x.num_chunks ? x.chunks[p + 1].start : x.num) - chunk.start;
    float* values = x.values + chunk.start;
    int32_t* positions = x.positions + chunk.start;
    if (p + 1 < end) fetch_chunk(x.x, x.chunks[p + 1]);
    if (k == chunk.length)
      std::iota(positions, positions + k, 0);
    else if (k > 0)
      find_in_chunk(x.x, chunk, k, room, positions);
    for (int64_t i = 0; i < k; ++i) values[i] = x.x[element(chunk, positions[i])];
  }
}
