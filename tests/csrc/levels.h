// The quantisers of every instruction set and number of threads against the scalar ones. Include it behind the kernels,
// drawn.h and bins.h.
#pragma once

using namespace sage::cpu;

inline void test_levels(Isa isa, const Team& team, int64_t n, Codec codec, const std::vector<int64_t>& bounds) {
  const Team alone{1, {}};
  const int64_t bucket = Ints{0, 1 + static_cast<int32_t>(below(100)), 128, 256, 9000}[below(5)];
  const std::vector<int64_t> buckets = bucket_bounds(bounds, bucket);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1, payloads = below(4), divisor = 1 + below(5);
  const Coding coding(codec, 1 + static_cast<int>(below(codec == Codec::natural ? 31 : 127)));
  const bool keep = below(2), added = below(2);
  const Kind kind = below(2) ? Kind::squares : Kind::largest;
  const int64_t num_bytes = coding.num_bytes(n);
  const auto [starts, firsts] = draw_positions(n);
  const Positions positions(starts, firsts);
  const Floats signal = draw(n), grad = draw(n), limits = draw(num);
  const float* limit = below(2) ? limits.data() : nullptr;
  const uint64_t key = generator();
  const std::string name = "codec " + std::to_string(static_cast<int>(codec));
  struct Result {
    Floats left, scales;
    std::vector<uint8_t> bytes;
  };
  const auto run = [&](Isa set, const Team& with) {
    Result found{signal, Floats(num), std::vector<uint8_t>(num_bytes)};
    const Quantisation x{coding,  found.left.data(), n,   buckets.data(), num,  nullptr, nullptr,
                         nullptr, limit,             key, &positions,     keep, found.bytes.data()};
    quantise_by(set, with, kind, x, buckets, grad.data(), found.scales.data());
    return found;
  };
  const Result ours = run(isa, team), plain = run(Isa::scalar, alone);
  expect(ours.bytes == plain.bytes, name + ": codes");
  expect(alike(ours.left, plain.left), name + ": error");
  expect(alike(ours.scales, plain.scales), name + ": scales");
  std::vector<uint8_t> rows(payloads * num_bytes);
  for (uint8_t& byte : rows) byte = static_cast<uint8_t>(below(256));
  const Floats each = draw(payloads * num);
  const auto mean = [&](Isa set, const Team& with) {
    Floats out = signal;
    average(set, with, {coding, out.data(), n, buckets.data(), num, nullptr, rows.data(), num_bytes, payloads, divisor, added},
            each.data());
    return out;
  };
  expect(alike(mean(isa, team), mean(Isa::scalar, alone)), name + ": mean");
}

// Bucket by bucket against one pass after the other: the gradient, the payloads, the codes, the factor of the error.
inline void test_blocks(Isa isa, const Team& team, int64_t n, Codec codec, const std::vector<int64_t>& bounds) {
  const Team alone{1, {}};
  const std::vector<int64_t> buckets = bucket_bounds(bounds, Ints{1 + static_cast<int32_t>(below(100)), 256, 9000}[below(3)]);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1, payloads = below(4), divisor = payloads ? 1 + below(5) : 1;
  const Coding coding(codec, 1);
  const Floats signal = draw(n), grad = draw(n), scales = draw(payloads * num);
  std::vector<uint8_t> rows(payloads * n);
  for (uint8_t& byte : rows) byte = static_cast<uint8_t>(below(256));
  const bool adds = below(2);
  expect(is_by_blocks(coding, Kind::largest, buckets), "blocks: taken");
  Floats ours = signal, found(num), left = adds ? sum(signal, grad) : signal, expected(num);
  std::vector<uint8_t> bytes(n), codes(n);
  quantise_blocks(isa, team, {coding, ours.data(), adds ? grad.data() : nullptr, n, buckets.data(), num, rows.data(),
                              nullptr, payloads, divisor, true, bytes.data(), found.data()},
                  scales.data());
  if (payloads)
    average(Isa::scalar, alone, {coding, left.data(), n, buckets.data(), num, nullptr, rows.data(), n, payloads, divisor, true},
            scales.data());
  const Positions positions(0);
  const Quantisation x{coding,  left.data(), n, buckets.data(), num,  nullptr, nullptr,
                       nullptr, nullptr,     0, &positions,     true, codes.data()};
  quantise_by(Isa::scalar, alone, Kind::largest, x, buckets, nullptr, expected.data());
  for (float& error : left) error *= static_cast<float>(divisor);
  expect(bytes == codes, "blocks: codes");
  expect(alike(ours, left), "blocks: error");
  expect(alike(found, expected), "blocks: scales");
}

// By scales that are given, block by block against sixteen elements after the other; and the mean of one payload.
inline void test_scaled(Isa isa, const Team& team, int64_t n, Codec codec, const std::vector<int64_t>& bounds) {
  const Team alone{1, {}};
  const int64_t block = Ints{16, 32, 48, 1600}[below(4)], groups = static_cast<int64_t>(bounds.size()) - 1;
  const std::vector<int64_t> buckets = bucket_bounds(bounds, block), firsts = first_blocks(bounds, block);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1, divisor = 1 + below(5);
  const Coding coding(codec, 1);
  const Floats signal = draw(n);
  Floats scales = draw(num), ours = signal, left = signal;
  for (float& scale : scales) scale = std::fabs(scale);
  std::vector<uint8_t> bytes(coding.num_bytes(n)), codes(bytes.size());
  const bool keep = below(2), added = below(2);
  expect(is_by_scaled_blocks(coding, block) && firsts.back() == num, "scaled: taken");
  quantise_scaled(isa, team, {coding, ours.data(), n, bounds.data(), firsts.data(), groups, block, scales.data(), keep, bytes.data()});
  const Positions positions(0);
  quantise(Isa::scalar, alone,
           {coding, left.data(), n, buckets.data(), num, nullptr, nullptr, nullptr, nullptr, 0, &positions, keep, codes.data()},
           scales.data());
  expect(bytes == codes, "scaled: codes");
  expect(alike(ours, left), "scaled: error");
  if (!is_of_whole_bytes(coding, bounds)) return;
  Floats mean = signal, expected = signal;
  average_scaled(isa, team,
                 {coding, mean.data(), n, bounds.data(), firsts.data(), groups, block, scales.data(), bytes.data(), divisor, added});
  average(Isa::scalar, alone,
          {coding, expected.data(), n, buckets.data(), num, nullptr, bytes.data(), coding.num_bytes(n), 1, divisor, added},
          scales.data());
  expect(alike(mean, expected), "scaled: mean");
}
