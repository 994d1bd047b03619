// The CUDA kernels of one pass over a vector, against the CPU's. Include it behind the kernels of the GPU and
// emulated_groups.h.
#pragma once

#include "../../csrc/cpu/blocks.h"
#include "../../csrc/cpu/cast.h"
#include "../../csrc/cpu/error.h"
#include "../../csrc/cpu/hadamard.h"
#include "../../csrc/cpu/microscales.h"
#include "../../csrc/cpu/product.h"

// A copy of a vector that begins at a multiple of 16 bytes, or between two.
template <class T>
struct Placed {
  std::vector<T> all;
  int64_t skip;

  explicit Placed(const std::vector<T>& x) : all(x.size() + 8), skip(below(2) * below(8)) {
    std::copy(x.begin(), x.end(), all.begin() + skip);
  }
  explicit Placed(int64_t n) : Placed(std::vector<T>(n)) {}

  T* data() { return all.data() + skip; }
  std::vector<T> vector() const { return {all.begin() + skip, all.end() - (8 - skip)}; }
};

inline std::vector<uint8_t> draw_bytes(int64_t n) {
  std::vector<uint8_t> bytes(n);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(below(256));
  return bytes;
}

inline void test_blocks(int64_t n, int codec) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const bool is_short = sage::cuda::CutTable(bounds, 0).longest <= sage::cuda::kMostInBlock;  // then whole groups fit too
  const int64_t bucket =
      Ints{1 + static_cast<int32_t>(below(100)), 256, 512, 1024, 1500, 4096, 9000, 16384, is_short ? 0 : 256}[below(9)];
  const std::vector<int64_t> buckets = sage::cpu::bucket_bounds(bounds, bucket);
  const int64_t num = static_cast<int64_t>(buckets.size()) - 1, payloads = below(4);
  const bool keep = payloads || below(2), adds = keep && below(2);
  const int64_t divisor = payloads ? 1 + below(5) : 1;
  const Floats scales = draw(payloads * num);
  Placed<float> ours(draw(n)), grad(draw(n)), found(num);
  Placed<uint8_t> rows(draw_bytes(payloads * n)), bytes(n);
  Floats theirs = ours.vector(), found_expected(num);
  std::vector<uint8_t> bytes_expected(n);
  OnDevice on(bounds, bucket);
  float* added = adds ? grad.data() : nullptr;
  sage::cuda::quantise_blocks(on.cut, on.table.longest,
                              {{static_cast<sage::cuda::Codec>(codec), 1}, ours.data(), added, n, scales.data(), rows.data(),
                               payloads, divisor, keep, bytes.data(), found.data()},
                              nullptr);
  sage::cpu::quantise_blocks(sage::cpu::isa(), kAlone,
                             {{static_cast<sage::cpu::Codec>(codec), 1}, theirs.data(), added, n, buckets.data(), num,
                              rows.data(), nullptr, payloads, divisor, keep, bytes_expected.data(), found_expected.data()},
                             scales.data());
  const std::string name = "blocks of codec " + std::to_string(codec);
  expect(alike(found.vector(), found_expected), name + ": scales");
  expect(bytes.vector() == bytes_expected, name + ": codes");
  expect(alike(ours.vector(), theirs), name + ": error");
}

// The same halves, or NaN in both.
inline bool alike_halves(bool fp16, const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  const int most = fp16 ? 0x7c00 : 0x7f80;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i] && !((a[i] & 0x7fff) > most && (b[i] & 0x7fff) > most)) return false;
  return a.size() == b.size();
}

inline void test_casts(int64_t n) {
  const bool fp16 = below(2), feeds_back = below(4);
  const auto format = fp16 ? sage::cpu::Format::fp16 : sage::cpu::Format::bf16;
  const int64_t world_size = 1 + below(9), num_rows = 1 + below(4);
  Floats grad = draw(n);
  if (below(3) == 0)
    for (float& x : grad) x *= 7e4f;
  Placed<float> signal(grad), ours(draw(n)), wide(n);
  Placed<uint16_t> share(n), total(n);
  Floats theirs = ours.vector();
  std::vector<uint16_t> expected(n);
  sage::cuda::cast_share(fp16, {signal.data(), feeds_back ? ours.data() : nullptr, share.data(), world_size}, n, nullptr);
  sage::cpu::cast_share(sage::cpu::isa(), kAlone, format,
                        {grad.data(), feeds_back ? theirs.data() : nullptr, expected.data(), static_cast<float>(world_size)},
                        n);
  expect(alike_halves(fp16, share.vector(), expected), "cast_share: share");
  expect(same(ours.vector(), theirs), "cast_share: residual");
  const std::vector<uint8_t> bytes = draw_bytes(2 * num_rows * n);
  std::vector<uint16_t> drawn(num_rows * n);
  if (n > 0) std::memcpy(drawn.data(), bytes.data(), bytes.size());
  Placed<uint16_t> rows(drawn);
  sage::cuda::sum_casts(fp16, rows.data(), num_rows, total.data(), n, nullptr);
  sage::cpu::sum_casts(sage::cpu::isa(), kAlone, format, drawn.data(), num_rows, expected.data(), n);
  expect(alike_halves(fp16, total.vector(), expected), "sum_casts");
  sage::cuda::widen(fp16, rows.data(), wide.data(), n, nullptr);
  sage::cpu::widen(sage::cpu::isa(), kAlone, format, drawn.data(), theirs.data(), n);
  expect(alike(wide.vector(), theirs), "widen");
}

inline void test_error(int64_t n) {
  Placed<float> ours(draw(n)), sent(draw(n));
  Floats theirs = ours.vector();
  sage::cuda::keep_error(ours.data(), sent.data(), n, nullptr);
  sage::cpu::keep_error(kAlone, theirs.data(), sent.data(), n);
  expect(same(ours.vector(), theirs), "keep_error");
}

inline void test_momentum(int64_t n) {
  Placed<float> ours(draw(n)), signal(draw(n));
  Floats theirs = ours.vector();
  std::vector<uint8_t> bits((n + 7) / 8), expected(bits.size());
  const float beta = Floats{0.0f, 0.9f, 0.99f}[below(3)];
  uint32_t largest = 0;
  sage::cuda::momentum_signs({ours.data(), signal.data(), beta, 1 - beta, bits.data(), &largest}, n, nullptr);
  const uint32_t most = sage::cpu::momentum_signs(sage::cpu::isa(), kAlone,
                                                  {theirs.data(), signal.data(), beta, 1 - beta, expected.data()}, n);
  expect(bits == expected, "momentum_signs: bits");
  expect(largest == most, "momentum_signs: largest");
  expect(alike(ours.vector(), theirs), "momentum_signs: momentum");
}

inline void test_product(int64_t n) {
  const int64_t rows = n ? 1 + below(below(2) ? 9 : n) : 0, columns = n / std::max<int64_t>(rows, 1), rank = 1 + below(5);
  Placed<float> left(draw(rows * rank)), right(draw(rank * columns)), ours(draw(rows * columns)), out(rows * columns);
  const bool keeps = below(3);
  Floats theirs = ours.vector(), expected(rows * columns);
  sage::cuda::write_product({left.data(), right.data(), rows, rank, columns, out.data(), keeps ? ours.data() : nullptr},
                            nullptr);
  sage::cpu::write_product(sage::cpu::isa(), kAlone, left.data(), right.data(), rows, rank, columns, expected.data(),
                           keeps ? theirs.data() : nullptr);
  expect(alike(out.vector(), expected), "write_product: product");
  expect(same(ours.vector(), theirs), "write_product: signal");
}

inline void test_hadamard(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const int64_t bucket = int64_t{16} << below(10);
  const std::vector<int64_t> buckets = sage::cpu::bucket_bounds(bounds, bucket);
  const uint64_t key = generator();
  const bool inverse = below(2);
  Placed<float> ours(draw(n));
  Floats theirs = ours.vector();
  OnDevice on(bounds, bucket);
  sage::cuda::hadamard(on.cut, {ours.data(), key, inverse}, nullptr);
  sage::cpu::hadamard(sage::cpu::isa(), kAlone,
                      {theirs.data(), buckets.data(), static_cast<int64_t>(buckets.size()) - 1, bucket, key, inverse});
  expect(alike(ours.vector(), theirs), "hadamard");
}

inline void test_largest_of_blocks(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const int64_t block = Ints{16, 32, 1 + static_cast<int32_t>(below(100)), 1024}[below(4)];
  const std::vector<int64_t> firsts = sage::cpu::first_blocks(bounds, block);
  const bool adds = below(2);
  Placed<float> ours(draw(n)), grad(draw(n)), found(firsts.back());
  Floats theirs = ours.vector(), added = grad.vector(), expected(firsts.back());
  OnDevice on(bounds, block);
  sage::cuda::largest_of_blocks(on.cut, ours.data(), adds ? grad.data() : nullptr, found.data(), nullptr);
  sage::cpu::largest_of_blocks(sage::cpu::isa(), kAlone,
                               {theirs.data(), adds ? added.data() : nullptr, bounds.data(), firsts.data(),
                                static_cast<int64_t>(bounds.size()) - 1, block, expected.data()});
  expect(same(found.vector(), expected), "largest_of_blocks");
  expect(alike(ours.vector(), theirs), "largest_of_blocks: signal");
}

inline void test_chunks(int64_t n) {
  Placed<float> x(draw(n));
  auto [table, num] = draw_chunks(n);
  const auto num_chunks = static_cast<int64_t>(table.size() / 4);
  Floats values(num);
  Ints found(num, -2);
  auto [expected, at] = largest_of_each(x.vector(), table, num, sage::cuda::magnitude);
  if (num_chunks > 0 && below(3) == 0) {  // a chunk that is not in the vector
    const int64_t p = below(num_chunks);
    const std::pair<int, int64_t> faults[] = {{0, -1}, {0, n}, {1, 63}, {2, 0}, {2, 4097}};
    const auto [column, wrong] = faults[below(5)];
    table[4 * p + column] = static_cast<int32_t>(wrong);
    const int32_t start = table[4 * p + 3], stop = p + 1 < num_chunks ? table[4 * p + 7] : num;
    std::fill(expected.begin() + start, expected.begin() + stop, NAN);
    std::fill(at.begin() + start, at.begin() + stop, -1);
  }
  const auto* chunks = reinterpret_cast<const sage::cuda::Chunk*>(table.data());
  sage::cuda::largest_in_chunks({x.data(), n, chunks, num_chunks, num, values.data(), found.data()}, nullptr);
  expect(found == at, "largest of chunks: positions");
  expect(alike(values, expected), "largest of chunks: values");
}

inline void test_tensor_scales(int64_t n) {
  const std::vector<int64_t> bounds = draw_bounds(n);
  const int64_t num = static_cast<int64_t>(bounds.size()) - 1;
  Floats largest = draw(n);
  for (float& x : largest) x = std::isfinite(x) ? std::fabs(x) : std::fabs(NAN);
  OnDevice on(bounds, 0);
  Placed<float> scales(n), decoded(n);
  Placed<uint8_t> bytes(4 * num + n);
  std::vector<uint32_t> found(num);
  Floats expected(n);
  std::vector<uint8_t> bytes_expected(4 * num + n);
  sage::cuda::write_tensor_scales(on.cut, n, largest.data(), found.data(), bytes.data(), scales.data(), nullptr);
  sage::cpu::write_tensor_scales(sage::cpu::isa(), kAlone,
                                  {bounds.data(), num, largest.data(), nullptr, nullptr, expected.data()}, bytes_expected.data());
  expect(bytes.vector() == bytes_expected, "write_tensor_scales: bytes");
  expect(alike(scales.vector(), expected), "write_tensor_scales: scales");
  sage::cuda::read_tensor_scales(on.cut, n, bytes.data(), decoded.data(), nullptr);
  expect(alike(decoded.vector(), expected), "read_tensor_scales");
}
