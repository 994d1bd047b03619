// AdaComp's codes of the elements taken from bins: the position in the bin, whether it is the bin's last, and a sign.
//
// An entry has 1, 2 or 4 bytes, by the length of the layer's bins, and entries of narrow bins come before those of
// wide bins. A bin from which nothing is taken has one entry, in which all bits of the position are 1.
#pragma once

#include <array>

#include "bins.h"

namespace sage::cpu {

constexpr std::array<int, 3> kWidths{1, 2, 4};

// Returns the bytes of an entry in bins of this length: two bits do not belong to the position.
inline int width_of(int64_t length) { return length < 1 << 6 ? 1 : length < 1 << 14 ? 2 : 4; }

// The elements that were taken from a vector.
struct FromBins {
  const int32_t* indices;
  const float* values;
  const int32_t* counts;  // of each bin
};

// Returns the bytes of all entries; -1 if the counts do not sum to `num`.
inline int64_t coded_bytes(const std::vector<Layer>& layers, const FromBins& taken, int64_t num) {
  int64_t bytes = 0, sum = 0;
  for (const Layer& layer : layers) {
    int64_t entries = 0;
    for (int64_t bin = layer.first_bin; bin < layer.first_bin + layer.bins(); ++bin) {
      if (taken.counts[bin] < 0) return -1;
      entries += std::max(1, taken.counts[bin]);
      sum += taken.counts[bin];
    }
    bytes += entries * width_of(layer.length);
  }
  return sum == num ? bytes : -1;
}

// Writes the entries of one layer; returns how many, or -1 if an element is outside its bin. In the residual, if there
// is one, each element becomes its value minus what its code stands for: `scale` with the value's sign.
template <class T>
__attribute__((always_inline)) inline int64_t encode_layer(const Layer& layer, FromBins taken, float scale,
                                                           float* residual, uint8_t* bytes) {
  int64_t entries = 0;
  for (int64_t bin = 0; bin < layer.bins(); ++bin) {
    const auto begin = static_cast<uint32_t>(layer.begin + bin * layer.length);
    const auto length = static_cast<uint32_t>(std::min(layer.length, layer.end - layer.begin - bin * layer.length));
    const int32_t num = taken.counts[layer.first_bin + bin];
    uint8_t* entry = bytes + entries * sizeof(T);
    uint32_t outside = 0;
    for (int32_t i = 0; i < num; ++i) {
      const uint32_t place = static_cast<uint32_t>(taken.indices[i]) - begin;
      outside |= place >= length;
      const auto code = static_cast<T>(place << 2 | (taken.values[i] < 0));
      std::memcpy(entry + i * sizeof(T), &code, sizeof(T));
    }
    if (outside) return -1;
    if (num == 0) {
      const auto nothing = static_cast<T>(~uint32_t{1});
      std::memcpy(entry, &nothing, sizeof(T));
    } else {
      entry[(num - 1) * sizeof(T)] |= 2;  // the low byte comes first
    }
    if (residual)
      for (int32_t i = 0; i < num; ++i)
        residual[taken.indices[i]] = finite(taken.values[i] - (taken.values[i] < 0 ? -scale : scale));
    entries += std::max(1, num);
    taken.indices += num;
    taken.values += num;
  }
  return entries;
}

SAGE_CLONES static int64_t encode_8(const Layer& layer, const FromBins& taken, float scale, float* residual,
                                    uint8_t* bytes) {
  return encode_layer<uint8_t>(layer, taken, scale, residual, bytes);
}

SAGE_CLONES static int64_t encode_16(const Layer& layer, const FromBins& taken, float scale, float* residual,
                                     uint8_t* bytes) {
  return encode_layer<uint16_t>(layer, taken, scale, residual, bytes);
}

SAGE_CLONES static int64_t encode_32(const Layer& layer, const FromBins& taken, float scale, float* residual,
                                     uint8_t* bytes) {
  return encode_layer<uint32_t>(layer, taken, scale, residual, bytes);
}

// Writes the entries of all layers; returns false if an element is outside its bin.
inline bool encode_layers(const std::vector<Layer>& layers, const FromBins& taken, const float* scales, float* residual,
                        uint8_t* bytes) {
  std::vector<int64_t> firsts{0};
  for (const Layer& layer : layers) {
    int64_t num = firsts.back();
    for (int64_t bin = layer.first_bin; bin < layer.first_bin + layer.bins(); ++bin) num += taken.counts[bin];
    firsts.push_back(num);
  }
  for (const int width : kWidths)
    for (size_t l = 0; l < layers.size(); ++l) {
      if (width_of(layers[l].length) != width) continue;
      const FromBins own{taken.indices + firsts[l], taken.values + firsts[l], taken.counts};
      const auto encode = width == 1 ? encode_8 : width == 2 ? encode_16 : encode_32;
      const int64_t entries = encode(layers[l], own, scales[l], residual, bytes);
      if (entries < 0) return false;
      bytes += entries * width;
    }
  return true;
}

// Returns the bytes of the entries of one width up to the last of `bins` bins; -1 if the bytes end before.
template <class T>
int64_t bytes_of(const uint8_t* bytes, int64_t num_bytes, int64_t bins) {
  int64_t at = 0;
  for (; bins > 0; at += sizeof(T)) {
    if (at + static_cast<int64_t>(sizeof(T)) > num_bytes) return -1;
    bins -= bytes[at] >> 1 & 1;
  }
  return at;
}

struct Entries {
  const uint8_t* next;
  const uint8_t* end;
};

// Decodes the entries of one layer to indices and values; returns their number, or -1 if they are not those of its bins.
template <class T>
int64_t decode_layer(const Layer& layer, Entries& entries, float scale, int32_t* indices, float* values) {
  constexpr uint32_t kNowhere = (uint64_t{1} << (8 * sizeof(T) - 2)) - 1;
  int64_t size = 0, begin = layer.begin;
  bool outside = false;
  const uint8_t* next = entries.next;
  for (int64_t left = layer.bins(); left > 0; next += sizeof(T)) {
    if (next == entries.end) return -1;
    T code;
    std::memcpy(&code, next, sizeof(T));
    const uint32_t entry = code, place = entry >> 2;
    const int64_t at = begin + place;
    const bool taken = place != kNowhere, last = entry >> 1 & 1;
    indices[size] = static_cast<int32_t>(at);
    values[size] = entry & 1 ? -scale : scale;
    outside |= taken & ((place >= layer.length) | (at >= layer.end));
    size += taken;
    begin += last ? layer.length : 0;
    left -= last;
  }
  entries.next = next;
  return outside ? -1 : size;
}

// Decodes all layers; returns the number of elements, or -1 if the bytes are not those of their bins. The lists need
// room for one more element than there are entries.
inline int64_t decode_layers(const std::vector<Layer>& layers, const uint8_t* bytes, int64_t num_bytes,
                           const float* scales, int32_t* indices, float* values) {
  std::array<Entries, 3> streams{};
  const uint8_t* const end = bytes + num_bytes;
  for (size_t kind = 0; kind < 3; ++kind) {
    int64_t bins = 0;
    for (const Layer& layer : layers) bins += width_of(layer.length) == kWidths[kind] ? layer.bins() : 0;
    const auto find = kind == 0 ? bytes_of<uint8_t> : kind == 1 ? bytes_of<uint16_t> : bytes_of<uint32_t>;
    const int64_t own = find(bytes, end - bytes, bins);
    if (own < 0) return -1;
    streams[kind] = {bytes, bytes + own};
    bytes += own;
  }
  if (bytes != end) return -1;
  int64_t size = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const size_t kind = width_of(layers[l].length) / 2;
    const auto decode = kind == 0 ? decode_layer<uint8_t> : kind == 1 ? decode_layer<uint16_t> : decode_layer<uint32_t>;
    const int64_t num = decode(layers[l], streams[kind], scales[l], indices + size, values + size);
    if (num < 0) return -1;
    size += num;
  }
  return size;
}

}  // namespace sage::cpu
