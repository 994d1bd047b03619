// Quantisers: each element becomes a code of 1 to 8 bits, a multiple of the scale of its bucket. One pass accumulates
// and computes the scales, a second one writes the codes and leaves the error; with small buckets the second finds
// its elements in the cache. Another adds the values of several payloads.
#pragma once

#include <cmath>
#include <vector>

#include "../dynamic_tree.h"
#include "groups.h"
#include "pack.h"
#include "philox.h"
#include "sums.h"

namespace sage::cpu {

enum class Codec : int {
  int8,     // the nearest of −127 … 127, of which 127 is the scale
  e4m3,     // the nearest 8-bit float of 4 exponent bits, of which the largest, 448, is the scale
  e5m2,     // the same of 5 exponent bits and 57344
  linear,   // one of −s … s at random, of which s is the scale; unbiased
  natural,  // 0 or ± one of s powers of two at random, of which the highest is the scale; unbiased
  power8,   // sign and 7 bits for a power of two: 127 of them, of which the highest is twice the scale; unbiased
  power9,   // 8 bits for the exponent of a float32, and behind all of them the signs; no scale; unbiased
  e2m1,     // the nearest 4-bit float of 2 exponent bits, of which 4 is the scale; at most 6, one and a half times it
  tree,     // the nearest of 128 magnitudes from 0 to 0.993 of the scale, and a sign
};

inline constexpr Tree kTree;

constexpr bool is_random(Codec codec) { return codec >= Codec::linear && codec <= Codec::power9; }

struct Coding {
  Codec codec;
  int levels;  // s
  int bits;    // of a code
  int offset;  // added to a power's level, it is the exponent field of a float32

  Coding(Codec which, int s) : codec(which), levels(s), bits(8), offset(0) {
    if (codec == Codec::linear || codec == Codec::natural) bits = 32 - __builtin_clz(static_cast<unsigned>(2 * s));
    if (codec == Codec::e2m1) bits = 4;
    if (codec == Codec::natural) offset = 127 - s;
    if (codec == Codec::power8) {
      levels = 127;
      offset = 1;
    }
  }

  // The number that the scale becomes.
  float most() const {
    switch (codec) {
      case Codec::int8:
        return 127;
      case Codec::e4m3:
        return 448;
      case Codec::e5m2:
        return 57344;
      case Codec::linear:
        return static_cast<float>(levels);
      case Codec::e2m1:
        return 4;
      default:
        return 1;
    }
  }

  // The number that the largest value is, as value_of gives it.
  float unit() const { return codec == Codec::e4m3 || codec == Codec::e5m2 ? 1.75f : most(); }

  int64_t num_bytes(int64_t n) const { return packed_bytes(n, bits) + (codec == Codec::power9 ? packed_bytes(n, 1) : 0); }
};

// A vector to quantise. Pointers are to the vector's first element, bucket or byte.
struct Quantisation {
  Coding coding;
  float* signal;
  int64_t numel;
  const int64_t* bounds;  // of the buckets
  int64_t num_buckets;
  // Of each bucket: a code is a · prescale · inverse, or of the tree a / inverse; a value is code · step.
  const float *prescale, *inverse, *step;
  const float* limits;                     // of each bucket: larger magnitudes are clipped to it; null: none are
  uint64_t key;                            // of the random bits
  const Positions* positions;              // of the elements, for their random bits
  bool keep;                               // whether the error is left in the signal
  uint8_t* bytes;
  bool own_scales = false;  // whether the scales were found from the signal, so that no element exceeds its own
};

// Payloads to average. Row w of the steps has num_buckets numbers, row w of the bytes num_bytes bytes.
struct Average {
  Coding coding;
  float* out;
  int64_t numel;
  const int64_t* bounds;
  int64_t num_buckets;
  const float* step;
  const uint8_t* bytes;
  int64_t num_bytes, num_payloads, divisor;
  bool added;            // to what `out` holds
  bool streams = false;  // whether `out` is written past the caches; its address is then a multiple of 64
};

}  // namespace sage::cpu

#define SAGE_KERNEL "levels_kernel.h"
#include "each_isa.h"

namespace sage::cpu {

// The numbers of each bucket that follow from its scale.
class Numbers {
 public:
  Numbers(const Coding& coding, int64_t num_buckets)
      : most_(coding.most()),
        unit_(coding.unit()),
        divides_(coding.codec == Codec::tree),
        all_(3 * num_buckets),
        num_(num_buckets) {}

  void set(int64_t bucket, float scale) {
    all_[2 * num_ + bucket] = scale / unit_;
    if (divides_) {
      all_[bucket] = 1;
      all_[num_ + bucket] = scale > 0 ? scale : 1;
      return;
    }
    // In two factors, so that neither of them overflows where the scale is extreme.
    const float pre = scale < 0x1p-64f ? 0x1p64f : scale > 0x1p64f ? 0x1p-64f : 1.0f;
    all_[bucket] = pre;
    all_[num_ + bucket] = scale > 0 && std::isfinite(scale) ? most_ / (scale * pre) : 0;
  }

  const float* prescale() const { return all_.data(); }
  const float* inverse() const { return all_.data() + num_; }
  const float* step() const { return all_.data() + 2 * num_; }

 private:
  float most_, unit_;
  bool divides_;  // the tree divides by the scale
  std::vector<float> all_;
  int64_t num_;
};

constexpr int64_t kResident = 16384;  // elements that stay in the cache between the two passes

inline float scale_of(Kind kind, const Statistic& found) {
  if (kind == Kind::squares) return static_cast<float>(std::sqrt(found.sum));
  float largest;
  std::memcpy(&largest, &found.largest, sizeof largest);
  return largest;
}

// signal += grad, where there is a gradient; the scale of each bucket, its largest magnitude or Euclidean norm; and the
// codes. `scales` is written.
inline void quantise_by(Isa isa, const Team& team, Kind kind, Quantisation x, const std::vector<int64_t>& bounds,
                        const float* grad, float* scales) {
  const int64_t num_buckets = x.num_buckets, n = x.numel;
  Numbers numbers(x.coding, num_buckets);
  x.own_scales = !x.limits;
  x.prescale = numbers.prescale();
  x.inverse = numbers.inverse();
  x.step = numbers.step();
  const int64_t parts = team.parts(n);
  if (parts > 1) {
    const auto found = statistics(isa, team, kind, x.signal, grad, bounds);
    for (int64_t b = 0; b < num_buckets; ++b) numbers.set(b, scales[b] = scale_of(kind, found[b]));
    return team.each(parts, [&](int64_t part) {
      SAGE_CHOOSE(isa, quantise_range, x, part_begin(n, parts, part) / kRandomTile * kRandomTile,
                  part + 1 == parts ? n : part_begin(n, parts, part + 1) / kRandomTile * kRandomTile);
    });
  }
  int64_t done = 0;
  for (int64_t b = 0; b < num_buckets;) {
    const int64_t begin = bounds[b];
    for (; b < num_buckets && (bounds[b] - begin < kResident); ++b) {
      const float scale =
          scale_of(kind, SAGE_CHOOSE(isa, of_group, kind, x.signal + bounds[b], grad ? grad + bounds[b] : nullptr,
                                     bounds[b + 1] - bounds[b]));
      numbers.set(b, scales[b] = scale);
    }
    const int64_t end = b == num_buckets ? n : bounds[b] / kRandomTile * kRandomTile;
    SAGE_CHOOSE(isa, quantise_range, x, done, end);
    done = end;
  }
}

// The same with given scales, of a signal that is complete.
inline void quantise(Isa isa, const Team& team, Quantisation x, const float* scales) {
  Numbers numbers(x.coding, x.num_buckets);
  for (int64_t b = 0; b < x.num_buckets; ++b) numbers.set(b, scales[b]);
  x.prescale = numbers.prescale();
  x.inverse = numbers.inverse();
  x.step = numbers.step();
  const int64_t parts = team.parts(x.numel);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, quantise_range, x, part_begin(x.numel, parts, part) / kRandomTile * kRandomTile,
                part + 1 == parts ? x.numel : part_begin(x.numel, parts, part + 1) / kRandomTile * kRandomTile);
  });
}

// out = Σ_w values_w / divisor. `scales` has num_buckets numbers for each payload.
inline void average(Isa isa, const Team& team, Average x, const float* scales) {
  std::vector<float> step(x.num_payloads * x.num_buckets);
  for (size_t i = 0; i < step.size(); ++i) step[i] = scales[i] / x.coding.unit();
  x.step = step.data();
  // Codes of a whole byte may be read from anywhere, so that the elements before a multiple of 64 bytes come first.
  const bool is_bytes = x.coding.bits == 8 && x.coding.codec != Codec::power9;
  const int64_t head = is_bytes ? std::min(to_line(x.out), x.numel) : 0, rest = x.numel - head;
  if (head > 0) SAGE_CHOOSE(isa, average_range, x, 0, head);
  x.streams = !x.added && may_stream(x.out + head, rest);
  const int64_t parts = team.parts(rest);
  team.each(parts, [&](int64_t part) {
    SAGE_CHOOSE(isa, average_range, x, head + part_begin(rest, parts, part) / kRandomTile * kRandomTile,
                part + 1 == parts ? x.numel : head + part_begin(rest, parts, part + 1) / kRandomTile * kRandomTile);
  });
}

}  // namespace sage::cpu
