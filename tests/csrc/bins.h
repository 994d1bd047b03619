// AdaComp's bins and their codes against brute force. Include it behind the kernels and drawn.h.
#pragma once

using namespace sage::cpu;

inline bool alike(float a, float b) { return std::isnan(a) ? std::isnan(b) : !std::memcmp(&a, &b, sizeof a); }

inline bool alike(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) { return alike(x, y); });
}

inline std::vector<Layer> draw_layers(int64_t n) {
  std::vector<int64_t> stops, lengths;
  for (int64_t at = 0; at < n;) {
    at = below(3) ? std::min(n, at + below(n / 2 + 2)) : n;
    stops.push_back(at);
    lengths.push_back(1 + below(below(3) ? (below(2) ? 700 : 60) : 40000));
  }
  return layers_of(stops, lengths);
}

inline void test_codes(const std::vector<Layer>& layers, int64_t n, const Floats& values, const Ints& at, const Ints& counts) {
  const int64_t num = static_cast<int64_t>(at.size());
  const Floats scales = draw(static_cast<int64_t>(layers.size())), before = draw(n);
  Floats residual = before, left = before, sent(num);
  const FromBins taken{at.data(), values.data(), counts.data()};
  std::vector<uint8_t> bytes(coded_bytes(layers, taken, num));
  expect(encode_layers(layers, taken, scales.data(), residual.data(), bytes.data()), "bins: encode");
  for (int64_t i = 0, layer = 0; i < num; ++i) {
    while (at[i] >= layers[layer].end) ++layer;
    sent[i] = values[i] < 0 ? -scales[layer] : scales[layer];
    const float rest = values[i] - sent[i];
    left[at[i]] = std::isfinite(rest) ? rest : 0;
  }
  expect(alike(residual, left), "bins: residual");
  Ints back(bytes.size() + 1);
  Floats decoded(bytes.size() + 1);
  const auto decode = [&](const std::vector<uint8_t>& coded, size_t size) {
    return decode_layers(layers, coded.data(), static_cast<int64_t>(size), scales.data(), back.data(), decoded.data());
  };
  expect(decode(bytes, bytes.size()) == num, "bins: number decoded");
  expect(std::equal(at.begin(), at.end(), back.begin()), "bins: indices decoded");
  decoded.resize(num);
  expect(alike(decoded, sent), "bins: values decoded");
  decoded.resize(bytes.size() + 1);
  if (!bytes.empty()) expect(decode(bytes, bytes.size() - 1) == -1, "bins: too few bytes");
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(below(256));  // whatever comes, it stays inside
  decode(bytes, bytes.size());
  if (num > 0) expect(coded_bytes(layers, taken, num - 1) == -1, "bins: counts");
}

inline void test_bins(Isa isa, const Team& team, int64_t n) {
  const std::vector<Layer> layers = draw_layers(n);
  const int64_t bins = layers.empty() ? 0 : layers.back().first_bin + layers.back().bins();
  const Floats grad = draw(n), residual = draw(n);
  const bool adds = below(4) > 0, keep = below(2), heavy = below(2);
  const float weight = 0.5f * static_cast<float>(below(6));
  Floats signal = residual, largest(bins);
  Ints counts(bins);
  Kept list;
  take_near(isa, team, {signal.data(), adds ? grad.data() : signal.data(), weight, adds, keep, heavy}, layers, n,
            largest.data(), counts.data(), list);

  const Floats a = adds ? sum(residual, grad) : residual;
  Floats left = a, values, most(bins), raw;
  Ints at, expected(bins);
  for (const Layer& layer : layers)
    for (int64_t bin = 0; bin < layer.bins(); ++bin) {
      const int64_t begin = layer.begin + bin * layer.length, end = std::min(begin + layer.length, layer.end);
      float& here = most[layer.first_bin + bin];
      for (int64_t i = begin; i < end; ++i)
        if (!(std::fabs(a[i]) <= here)) here = std::isnan(here) ? here : std::fabs(a[i]);
      for (int64_t i = begin; i < end; ++i) {
        const float weighted = weight * (adds ? grad[i] : a[i]), sum = a[i] + weighted;
        if (std::fabs(sum) < here || a[i] == 0) continue;
        values.push_back(heavy ? sum : a[i]);
        raw.push_back(a[i]);
        at.push_back(static_cast<int32_t>(i));
        const float rest = a[i] - values.back();
        if (keep) left[i] = std::isfinite(rest) ? rest : 0;
        ++expected[layer.first_bin + bin];
      }
    }
  expect(alike(largest, most), "bins: largest");
  expect(counts == expected, "bins: counts");
  expect(Ints(list.indices, list.indices + list.size) == at, "bins: indices");
  expect(alike(Floats(list.values, list.values + list.size), values), "bins: values");
  expect(alike(signal, left), "bins: signal");
  test_codes(layers, n, raw, at, counts);
}
