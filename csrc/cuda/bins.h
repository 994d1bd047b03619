// AdaComp's bins on a GPU: how layers are cut into bins, as a table for the device, and what is computed for them. The format
// of the codes is that of cpu/bin_codes.h.
#pragma once

#include "kernels.h"

namespace sage::cuda {

constexpr int kWidths = 3;  // of entries: 1, 2 or 4 bytes

// Of an entry in bins of this length: two bits do not belong to the position.
inline int width_class(int64_t length) { return length < 1 << 6 ? 0 : length < 1 << 14 ? 1 : 2; }

// On the device.
struct Layers {
  const int32_t *begins, *first_bin;  // of each layer, and the end
  const int32_t* lengths;             // of each layer's bins
  const int32_t* order;               // the layers, those of narrow entries first
  const int32_t* first_of_width;      // of each in that order: the bins before it that have entries of its width
  int32_t num, num_bins;
  int32_t starts[kWidths + 1];        // of the widths, in that order
  int32_t bins[kWidths];              // of each width
};

// On the host, where the table is computed.
struct LayerTable {
  std::vector<int32_t> words;
  Layers layers{};

  LayerTable(const std::vector<int64_t>& stops, const std::vector<int64_t>& lengths)
      : words(5 * stops.size() + 2) {
    const size_t num = stops.size();
    int32_t *begins = words.data(), *first_bin = begins + num + 1, *length = first_bin + num + 1;
    int32_t *order = length + num, *first_of_width = order + num;
    for (size_t l = 0; l < num; ++l) {
      length[l] = static_cast<int32_t>(lengths[l]);
      begins[l + 1] = static_cast<int32_t>(stops[l]);
      first_bin[l + 1] = first_bin[l] + static_cast<int32_t>((begins[l + 1] - begins[l] + lengths[l] - 1) / lengths[l]);
    }
    int32_t at = 0;
    for (int width = 0; width < kWidths; ++width) {
      layers.starts[width] = at;
      for (size_t l = 0; l < num; ++l) {
        if (width_class(lengths[l]) != width) continue;
        order[at] = static_cast<int32_t>(l);
        first_of_width[at++] = layers.bins[width];
        layers.bins[width] += first_bin[l + 1] - first_bin[l];
      }
    }
    layers.starts[kWidths] = at;
    layers.num = static_cast<int32_t>(num);
    layers.num_bins = first_bin[num];
  }

  // The layers, whose table is at `place`.
  Layers at(const int32_t* place) const {
    Layers found = layers;
    const int32_t num = layers.num;
    found.begins = place, found.first_bin = place + num + 1, found.lengths = place + 2 * num + 2;
    found.order = found.lengths + num, found.first_of_width = found.order + num;
    return found;
  }
};

// What is taken from bins: the elements other than 0 whose |a + weight · grad| is at or above the largest |a| of their bin,
// where a = signal + grad.
struct Near {
  float* signal;
  const float* grad;  // nullptr: nothing is added, and the signal stands for it
  int64_t n;
  float weight;
  bool keep;   // whether a minus the value taken is left in the signal, 0 if that is not finite
  bool heavy;  // whether a + weight · grad is taken instead of a
};

// Takes to `values` and `indices`, which have room for n, and writes each bin's largest magnitude and how many are taken of
// it. `most`, `counts` and `sums` are 0 before. `sums` has a word for each tile, and one more; behind it, the word of the
// last tile has the number taken. Two launches.
void take_near(const Layers& layers, const Near& near, uint32_t* most, int32_t* counts, unsigned long long* sums,
               float* values, int32_t* indices, Stream stream);

// Results that the host needs before it can allocate the output; all 0 before.
struct BinTotals {
  unsigned long long taken;        // sum of the counts
  unsigned long long entries;
  unsigned long long bytes;
  unsigned long long wrong;        // not 0: what is given does not fit the bins
  unsigned long long found[kWidths + 1];    // elements of the widths before
  unsigned long long stopped[kWidths + 1];  // behind the entries of the widths before, plus 1; 0: they do not end
};

constexpr int64_t kTotalWords = sizeof(BinTotals) / sizeof(unsigned long long);

// The elements taken from bins.
struct FromBins {
  const int32_t* indices;
  const float* values;
  const int32_t* counts;  // of each bin
  int64_t num;
};

// Computes how many elements and entries are before each bin, where each layer's entries begin, and the totals. `sums` has a
// word for each tile of bins, and one more, all 0 before. Two launches.
void place_entries(const Layers& layers, const FromBins& taken, int32_t* elements_before, int32_t* entries_before,
                   int64_t* bytes_before, unsigned long long* sums, BinTotals* totals, Stream stream);

// Writes the entries. In the residual, where there is one, an element becomes its value minus what its code stands for.
void encode_bins(const Layers& layers, const FromBins& taken, const float* scales, const int32_t* elements_before,
                 const int32_t* entries_before, const int64_t* bytes_before, float* residual, uint8_t* bytes,
                 Stream stream);

// Decodes to `values` and `indices`, which have room for as many elements as there are bytes: those of narrow entries first.
// `sums` has as many words for each width as there are tiles of bytes, and one more, all 0 before. Writes to `shifts` how far
// each layer's elements are from their place in the output. Four launches at most.
void decode_entries(const Layers& layers, const uint8_t* bytes, int64_t num_bytes, const float* scales, float* values,
                    int32_t* indices, int32_t* shifts, unsigned long long* sums, BinTotals* totals, Stream stream);

// Moves the elements to their places.
void order_elements(const Layers& layers, int64_t num, const float* values, const int32_t* indices, const int32_t* shifts,
                    float* out_values, int32_t* out_indices, Stream stream);

}  // namespace sage::cuda
