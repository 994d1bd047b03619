// The 128 magnitudes of the codec `tree`, and the table by which the nearest of them is found.
#pragma once

#include <cstdint>

namespace sage {

// The magnitudes are 0 and, for i = 0 to 6, the middles of 2^i equal parts of [0.1, 1], times 10^(i − 6): those of
// sage/ops/reference_tree.py. A border is the middle of two of them. A cell has the magnitudes whose bits differ in the
// lowest kLow only, and one border at most. It holds b · 2^kLow, where b is the number of borders below it, and with a
// border of its own what is carried into bit kLow if the low bits of a magnitude above that border are added. `level` has
// the bits of the borders in the order in which a search by halves reads them: the middle one, those of either half, …
struct Tree {
  static constexpr int kLow = 17;
  static constexpr uint32_t kLowBits = (1u << kLow) - 1;
  static constexpr uint32_t kFirst = 105u << (23 - kLow);                // the cell of 2^-22, below all borders
  static constexpr uint32_t kCells = (22u << (23 - kLow)) + 1;           // up to that of 1
  static constexpr uint32_t kLast = kFirst + kCells - 1;
  float value[128];
  uint32_t cell[kCells];
  uint32_t level[127];

  constexpr Tree() : value{}, cell{}, level{} {
    constexpr double kPowers[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
    int num = 1;
    for (int i = 0; i < 7; ++i)
      for (int part = 0; part < 1 << i; ++part)
        value[num++] = static_cast<float>((part_begin(part, 1 << i) + part_begin(part + 1, 1 << i)) / 2 * kPowers[i]);
    uint32_t below = 0, at = 0;
    for (; below < 127; ++below) {
      const uint32_t border = bits_of((value[below] + value[below + 1]) / 2);
      for (; at < (border >> kLow) - kFirst; ++at) cell[at] = below << kLow;
      cell[at++] = (below << kLow) + (kLowBits - (border & kLowBits));
    }
    for (; at < kCells; ++at) cell[at] = below << kLow;
    for (int apart = 64, next = 0; apart > 0; apart /= 2)
      for (int place = apart; place < 128; place += 2 * apart) level[next++] = bits_of((value[place - 1] + value[place]) / 2);
  }

 private:
  // Where a part of [0.1, 1] begins, counted from the end that is nearer.
  static constexpr double part_begin(int part, int parts) {
    const double length = (1 - 0.1) / parts;
    return part < (parts + 1) / 2 ? 0.1 + length * part : 1 - length * (parts - part);
  }

  // The bits of a number in (0, 1) that is not denormal.
  static constexpr uint32_t bits_of(float x) {
    uint32_t exponent = 127;
    for (; x < 1; x *= 2) --exponent;
    return exponent << 23 | static_cast<uint32_t>((x - 1) * 0x1p23f);
  }
};

}  // namespace sage
