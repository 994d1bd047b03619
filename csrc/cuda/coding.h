// What the codes of a quantiser stand for: the codecs of cpu/levels.h.
#pragma once

#include <cstdint>

namespace sage::cuda {

enum class Codec : int { int8, e4m3, e5m2, linear, natural, power8, power9, e2m1, tree };

struct Coding {
  Codec codec;
  int levels, bits = 8;
  int offset = 0;             // added to a power's level, it is the exponent field of a float32
  float most = 1, unit = 1;   // what the scale becomes, and the number that its code stands for

  Coding(Codec which, int s) : codec(which), levels(s) {
    if (codec == Codec::linear || codec == Codec::natural)
      for (bits = 1; 2 * s >> bits;) ++bits;
    if (codec == Codec::e2m1) bits = 4, most = unit = 4;
    if (codec == Codec::natural) offset = 127 - s;
    if (codec == Codec::power8) levels = 127, offset = 1;
    if (codec == Codec::int8) most = unit = 127;
    if (codec == Codec::linear) most = unit = static_cast<float>(s);
    if (codec == Codec::e4m3) most = 448, unit = 1.75f;
    if (codec == Codec::e5m2) most = 57344, unit = 1.75f;
  }

  int64_t num_bytes(int64_t n) const { return (n * bits + 7) / 8 + (codec == Codec::power9 ? (n + 7) / 8 : 0); }
};

}  // namespace sage::cuda
