// See distinct.h. Compiled for each instruction set by each_isa.h, behind philox.h.

// Writes the words of the 16 counters of a tile: first all first words, then all second words, and so on.
inline void random_words(uint64_t key, uint64_t tile, uint32_t* out) {
  I word[4];
  philox(key, tile, word);
  for (int w = 0; w < 4; ++w) storei(out + 16 * w, word[w]);
}
