// The number of launches of each op that has groups: it does not grow with them. Include it behind all other emulated tests.
#pragma once

// Expects `num` launches of a run over the bounds of 1, of 2 and of 120 groups.
template <class Run>
void expect_launches(const std::string& op, int64_t num, const Run& run) {
  for (const int64_t groups : {1, 2, 120}) {
    const int64_t found = launches_of(run, groups);
    expect(found == num, op + ": " + std::to_string(found) + " launches for " + std::to_string(groups) + " groups, not " +
                             std::to_string(num));
  }
}

using Bounds = std::vector<int64_t>;

// With the launch that copies the table to the device.
inline void test_launches_of_groups() {
  for (int kind = 0; kind < 4; ++kind)
    expect_launches("statistics", 3, [kind](const Bounds& bounds) {
      OnDevice on(bounds, 0);
      Floats x = draw(bounds.back());
      std::vector<double> rows(4 * bounds.size());
      sage::cuda::statistics(static_cast<sage::cuda::Kind>(kind), on.cut, x.data(), nullptr, on.pieces.data(), rows.data(),
                             nullptr);
    });
  expect_launches("sign_bits", 2, [](const Bounds& bounds) {
    const OnDevice on(bounds, 0);
    Floats x = draw(bounds.back()), each(bounds.size());
    std::vector<uint8_t> bytes(x.size());
    sage::cuda::sign_bits(on.cut, x.data(), bounds.back(), each.data(), each.data(), true, bytes.data(), nullptr);
  });
  expect_launches("mean_signs", 2, [](const Bounds& bounds) {
    const OnDevice on(bounds, 0);
    Floats x(bounds.back()), each(2 * bounds.size());
    const int64_t num_bytes = (bounds.back() + 7) / 8;
    const std::vector<uint8_t> bytes(2 * num_bytes);
    sage::cuda::mean_signs(
        on.cut, {x.data(), bounds.back(), each.data(), each.data(), bytes.data(), num_bytes, 2, 2, false, false}, nullptr);
  });
  expect_launches("sign_words and sign_bytes", 3, [](const Bounds& bounds) {
    const OnDevice on(bounds, 32);
    std::vector<uint8_t> bytes(bounds.back());
    std::vector<uint32_t> words(on.cut.num_buckets);
    sage::cuda::sign_words(on.cut, bytes.data(), bounds.back(), words.data(), nullptr);
    sage::cuda::sign_bytes(on.cut, words.data(), bounds.back(), 1, bytes.data(), nullptr);
  });
  for (const int64_t bucket : {0, 16})
    expect_launches("quantise and average", bucket ? 4 : 5, [bucket](const Bounds& bounds) {
      const int64_t n = bounds.back();
      OnDevice on(bounds, bucket, {0}, {0});
      Floats x = draw(n), scales(on.cut.num_buckets);
      const sage::cuda::Coding coding(sage::cuda::Codec::linear, 4);
      std::vector<uint8_t> bytes(coding.num_bytes(n));
      sage::cuda::scales(true, on.cut, x.data(), nullptr, on.pieces.data(), scales.data(), nullptr);
      sage::cuda::quantise(on.cut, {coding, x.data(), n, scales.data(), nullptr, 7, on.positions, true, bytes.data()},
                           nullptr);
      sage::cuda::average(on.cut, {coding, x.data(), n, scales.data(), bytes.data(), coding.num_bytes(n), 1, 1, false},
                          nullptr);
    });
  expect_launches("quantise_blocks", 2, [](const Bounds& bounds) {
    OnDevice on(bounds, 16);
    Floats x = draw(bounds.back()), scales(on.cut.num_buckets);
    std::vector<uint8_t> bytes(x.size());
    sage::cuda::quantise_blocks(on.cut, on.table.longest,
                                {{static_cast<sage::cuda::Codec>(0), 1}, x.data(), nullptr, bounds.back(), nullptr, nullptr,
                                 0, 1, true, bytes.data(), scales.data()},
                                nullptr);
  });
  expect_launches("largest_of_blocks", 2, [](const Bounds& bounds) {
    OnDevice on(bounds, 16);
    Floats x = draw(bounds.back()), largest(on.cut.num_buckets);
    sage::cuda::largest_of_blocks(on.cut, x.data(), nullptr, largest.data(), nullptr);
  });
  expect_launches("write_tensor_scales and read_tensor_scales", 4, [](const Bounds& bounds) {
    OnDevice on(bounds, 0);
    const int64_t n = bounds.back(), num = on.cut.num_groups;
    const Floats largest(n, 1);
    Floats scales(n);
    std::vector<uint32_t> found(num);
    std::vector<uint8_t> bytes(4 * num + n);
    sage::cuda::write_tensor_scales(on.cut, n, largest.data(), found.data(), bytes.data(), scales.data(), nullptr);
    sage::cuda::read_tensor_scales(on.cut, n, bytes.data(), scales.data(), nullptr);
  });
  expect_launches("moments", 3, [](const Bounds& bounds) {
    Floats x = draw(bounds.back());
    moments_on_gpu(bounds, x, nullptr);
  });
  expect_launches("magnitudes by rank", 6, [](const Bounds& bounds) {
    Floats x = draw(bounds.back());
    const auto num = static_cast<int64_t>(bounds.size()) - 1;
    OnTiles on(bounds, std::vector<int64_t>(2 * num, 3), 2 * num);
    ranked_on_gpu(on, 2, x);
  });
  expect_launches("magnitudes above limits", 2, [](const Bounds& bounds) {
    const Floats x = draw(bounds.back());
    Floats found(x.size());
    std::vector<unsigned long long> counts(bounds.size());
    OnTiles on(bounds, std::vector<int64_t>(bounds.size() - 1, 0), 0);
    std::fill(on.sums.begin(), on.sums.end(), 0);
    sage::cuda::take_above(on.cut, x.data(), found.data(), counts.data(), on.sums.data(), nullptr);
  });
  expect_launches("excess", 3, [](const Bounds& bounds) { test_excess(draw(bounds.back()), 0.5f); });
  expect_launches("sampled", 7, [](const Bounds& bounds) {
    const Floats signal = draw(bounds.back());
    const auto num = static_cast<int64_t>(bounds.size()) - 1;
    Bounds before{0};
    for (int64_t g = 0; g < num; ++g) before.push_back(before[g] + (bounds[g + 1] - bounds[g]) / 2);
    Bounds wanted(num, 1);  // and the bounds of the vector's groups
    wanted.insert(wanted.end(), bounds.begin(), bounds.end());
    const Ints draws(before.back());
    OnTiles on(before, wanted, num);
    Floats seen(draws.size());
    sage::cuda::sample(on.cut, before.back(), signal.data(), nullptr, draws.data(), seen.data(), nullptr);
    ranked_on_gpu(on, 1, seen);
  });
  expect_launches("encode_bins and decode_bins", 9, [](const Bounds& bounds) {
    const OnBins on(Bounds(bounds.begin() + 1, bounds.end()), Bounds(bounds.size() - 1, 8));
    const auto num = static_cast<int64_t>(bounds.back());
    Ints indices(num), counts(on.num_bins), elements(on.num_bins), entries(on.num_bins);
    for (int64_t g = 0; g < on.layers.num; ++g)
      for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i) ++counts[on.layers.first_bin[g] + (i - bounds[g]) / 8];
    for (int64_t i = 0; i < num; ++i) indices[i] = static_cast<int32_t>(i);
    const Floats values(num, 1), scales(on.layers.num, 1);
    std::vector<int64_t> begins(on.layers.num);
    std::vector<unsigned long long> sums(sage::cuda::tiles(on.num_bins) + 1);
    const sage::cuda::FromBins taken{indices.data(), values.data(), counts.data(), num};
    sage::cuda::BinTotals totals{};
    sage::cuda::place_entries(on.layers, taken, elements.data(), entries.data(), begins.data(), sums.data(), &totals, nullptr);
    std::vector<uint8_t> bytes(totals.bytes);
    sage::cuda::encode_bins(on.layers, taken, scales.data(), elements.data(), entries.data(), begins.data(), nullptr,
                            bytes.data(), nullptr);
    test_decode_bins(on, bytes, scales);
  });
  expect_launches("take_near", 3, [](const Bounds& bounds) {
    const OnBins on(Bounds(bounds.begin() + 1, bounds.end()), Bounds(bounds.size() - 1, 8));
    Floats x = draw(bounds.back()), values(x.size());
    Ints counts(on.num_bins), indices(x.size());
    std::vector<uint32_t> largest(on.num_bins);
    std::vector<unsigned long long> sums(sage::cuda::tiles(bounds.back()) + 1);
    sage::cuda::take_near(on.layers, {x.data(), nullptr, bounds.back(), 1, true, false}, largest.data(), counts.data(),
                          sums.data(), values.data(), indices.data(), nullptr);
  });
  expect_launches("Elias streams", 8, [](const Bounds& bounds) {
    const auto groups = static_cast<int64_t>(bounds.size()) - 1;
    const std::vector<int8_t> levels(bounds.back(), 1);
    const sage::cuda::SegmentTable table(bounds, {}, sage::cuda::kSpan);
    Ints place(table.words.size()), behind(table.num_tiles), bits(groups);
    sage::cuda::upload(table.words, place.data(), nullptr);
    std::vector<unsigned long long> before(table.num_tiles), sums(2 * table.num_tiles + 1), each(groups), begins(groups);
    const sage::cuda::Measured measured{behind.data(), before.data(), each.data(), begins.data(), bits.data()};
    sage::cuda::EliasTotals totals{};
    sage::cuda::measure_streams(table.at(place.data()), {levels.data(), true}, measured, sums.data(), &totals, nullptr);
    std::vector<uint32_t> words(totals.words);
    sage::cuda::encode_streams(table.at(place.data()), {levels.data(), true}, measured, words.data(), nullptr);
    std::vector<int8_t> back(levels.size());
    expect(decode_on_gpu(words, bits, bounds, back) && back == levels, "elias: levels of even groups");
  });
}
