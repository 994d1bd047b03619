// AdaComp's bins on a GPU against the CPU's. Include it behind the kernels of the GPU and emulated_groups.h.
#pragma once

#include "../../csrc/cpu/bin_codes.h"
#include "../../csrc/cuda/bins.h"

// Layers whose table has been copied by the kernel, and layers of the CPU.
struct OnBins {
  sage::cuda::LayerTable table;
  Ints words;
  sage::cuda::Layers layers;
  std::vector<sage::cpu::Layer> theirs;
  int64_t num_bins;

  OnBins(const std::vector<int64_t>& stops, const std::vector<int64_t>& lengths)
      : table(stops, lengths), words(table.words.size(), -1), layers(table.at(words.data())),
        theirs(sage::cpu::layers_of(stops, lengths)), num_bins(layers.num_bins) {
    sage::cuda::upload(table.words, words.data(), nullptr);
    expect(num_bins == (theirs.empty() ? 0 : theirs.back().first_bin + theirs.back().bins()), "bins: number");
  }
};

inline void test_decode_bins(const OnBins& on, const std::vector<uint8_t>& bytes, const Floats& scales) {
  const auto num_bytes = static_cast<int64_t>(bytes.size());
  Ints indices(num_bytes + 1), places(num_bytes), shifts(scales.size());
  Floats values(num_bytes + 1), staged(num_bytes);
  std::vector<unsigned long long> sums(sage::cuda::kWidths * (sage::cuda::tiles(num_bytes) + 1));
  sage::cuda::BinTotals totals{};
  sage::cuda::decode_entries(on.layers, bytes.data(), num_bytes, scales.data(), staged.data(), places.data(), shifts.data(),
                             sums.data(), &totals, nullptr);
  const bool holds = totals.wrong == 0 && totals.stopped[sage::cuda::kWidths] == bytes.size() + 1;
  const int64_t num =
      sage::cpu::decode_layers(on.theirs, bytes.data(), num_bytes, scales.data(), indices.data(), values.data());
  expect(holds == (num >= 0), "bins: whether bytes are refused");
  if (!holds) return;
  expect(totals.found[sage::cuda::kWidths] == static_cast<unsigned long long>(num), "bins: number decoded");
  Ints at(num);
  Floats decoded(num);
  sage::cuda::order_elements(on.layers, num, staged.data(), places.data(), shifts.data(), decoded.data(), at.data(), nullptr);
  indices.resize(num), values.resize(num);
  expect(at == indices, "bins: indices decoded");
  expect(same(decoded, values), "bins: values decoded");
}

inline void test_bin_codes(const OnBins& on, int64_t n, const Floats& values, const Ints& indices, const Ints& counts) {
  const auto num = static_cast<int64_t>(indices.size());
  const Floats scales = draw(on.layers.num), residual = draw(n);
  Floats ours = residual, theirs = residual;
  const sage::cpu::FromBins given{indices.data(), values.data(), counts.data()};
  std::vector<uint8_t> expected(sage::cpu::coded_bytes(on.theirs, given, num));
  sage::cpu::encode_layers(on.theirs, given, scales.data(), theirs.data(), expected.data());
  const auto place = [&](const Ints& at, const Ints& each, Ints& elements, Ints& entries, std::vector<int64_t>& begins) {
    std::vector<unsigned long long> sums(sage::cuda::tiles(on.num_bins) + 1);
    sage::cuda::BinTotals totals{};
    sage::cuda::place_entries(on.layers, {at.data(), values.data(), each.data(), num}, elements.data(), entries.data(),
                              begins.data(), sums.data(), &totals, nullptr);
    return totals;
  };
  Ints elements(on.num_bins), entries(on.num_bins);
  std::vector<int64_t> begins(on.layers.num);
  const sage::cuda::BinTotals totals = place(indices, counts, elements, entries, begins);
  expect(totals.wrong == 0 && totals.taken == indices.size(), "bins: what holds is refused");
  expect(totals.bytes == expected.size(), "bins: number of bytes");
  std::vector<uint8_t> bytes(expected.size());
  const bool keep = below(2);
  sage::cuda::encode_bins(on.layers, {indices.data(), values.data(), counts.data(), num}, scales.data(), elements.data(),
                          entries.data(), begins.data(), keep ? ours.data() : nullptr, bytes.data(), nullptr);
  expect(bytes == expected, "bins: bytes");
  expect(alike(ours, keep ? theirs : residual), "bins: residual");
  if (num > 0) {
    Ints moved = indices, more = counts;
    moved[below(num)] += on.num_bins > 1 && below(2) ? -static_cast<int32_t>(n) : static_cast<int32_t>(n);
    expect(place(moved, counts, elements, entries, begins).wrong > 0, "bins: an element outside the layers");
    more[below(on.num_bins)] += below(2) ? 1 : INT32_MAX / 2;
    const sage::cuda::BinTotals others = place(indices, more, elements, entries, begins);
    expect(others.wrong > 0 || others.taken != indices.size(), "bins: a sum of counts");
  }
  test_decode_bins(on, bytes, scales);
  if (!bytes.empty()) test_decode_bins(on, std::vector<uint8_t>(bytes.begin(), bytes.end() - 1), scales);
  bytes.push_back(0);
  test_decode_bins(on, bytes, scales);
  bytes[below(static_cast<int64_t>(bytes.size()))] ^= static_cast<uint8_t>(1 << below(8));
  bytes.pop_back();
  test_decode_bins(on, bytes, scales);
}

inline void test_bins(int64_t n) {
  std::vector<int64_t> stops = draw_bounds(n), lengths;
  stops.erase(stops.begin());
  if (n == 0 && below(2)) stops.clear();
  for (size_t l = 0; l < stops.size(); ++l) lengths.push_back(1 + below(below(3) ? (below(2) ? 700 : 60) : 40000));
  const OnBins on(stops, lengths);
  const Floats grad = draw(n), residual = draw(n);
  const bool adds = below(4) > 0, keep = below(2), heavy = below(2);
  const float weight = 0.5f * static_cast<float>(below(6));
  Floats ours = residual, theirs = residual, most(on.num_bins);
  Ints counts_expected(on.num_bins), counts(on.num_bins), indices(n);
  sage::cpu::Kept list;
  sage::cpu::take_near(sage::cpu::isa(), kAlone,
                       {theirs.data(), adds ? grad.data() : theirs.data(), weight, adds, keep, heavy}, on.theirs, n,
                       most.data(), counts_expected.data(), list);
  std::vector<uint32_t> largest(on.num_bins);
  std::vector<unsigned long long> sums(sage::cuda::tiles(n) + 1);
  Floats values(n);
  sage::cuda::take_near(on.layers, {ours.data(), adds ? grad.data() : nullptr, n, weight, keep, heavy}, largest.data(),
                        counts.data(), sums.data(), values.data(), indices.data(), nullptr);
  const auto num = n > 0 ? static_cast<int64_t>(sums[sage::cuda::tiles(n) - 1] & INT32_MAX) : 0;
  expect(num == list.size, "bins: number taken");
  indices.resize(num), values.resize(num);
  expect(indices == Ints(list.indices, list.indices + num), "bins: indices");
  expect(alike(values, Floats(list.values, list.values + num)), "bins: values");
  expect(counts == counts_expected, "bins: counts");
  expect(largest.empty() || !std::memcmp(largest.data(), most.data(), largest.size() * sizeof(float)), "bins: largest");
  expect(alike(ours, theirs), "bins: signal");
  test_bin_codes(on, n, values, indices, counts);
}
