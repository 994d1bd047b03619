// The bins of a vector's elements on the device.
#pragma once

#include "bins.h"
#include "groups.cuh"

namespace sage::cuda {

// A bin, and what it is a part of.
struct Bin {
  int32_t layer, number;
  int64_t begin, end;

  // The bin of an element, which is in one of the layers [low, high].
  __device__ __forceinline__ Bin(const Layers& layers, int32_t low, int32_t high, int64_t i)
      : layer(group_of(layers.begins, low, high, i)) {
    const int64_t first = layers.begins[layer], stop = layers.begins[layer + 1];
    const uint32_t length = static_cast<uint32_t>(layers.lengths[layer]), place = static_cast<uint32_t>(i - first) / length;
    number = layers.first_bin[layer] + static_cast<int32_t>(place);
    begin = first + static_cast<int64_t>(place) * length;
    end = begin + length < stop ? begin + length : stop;
  }
};

// The bins of a tile's elements [begin, end).
struct TileBins {
  const Layers& layers;
  Bin first, last;

  __device__ __forceinline__ TileBins(const Layers& of, int64_t begin, int64_t end)
      : layers(of), first(of, 0, of.num - 1, begin), last(of, first.layer, of.num - 1, end - 1) {}

  __device__ __forceinline__ int size() const { return last.number - first.number + 1; }  // kTile at most

  // The bins of elements i to i + 3, of those before n, counted from the tile's first; the last one is that of the others.
  __device__ __forceinline__ void of(int64_t i, int64_t n, int (&found)[4]) const {
    Bin bin(layers, first.layer, last.layer, i);
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (i + j < n && i + j >= bin.end) bin = Bin(layers, bin.layer, last.layer, i + j);
      found[j] = bin.number - first.number;
    }
  }
};

}  // namespace sage::cuda
