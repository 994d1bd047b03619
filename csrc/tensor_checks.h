// Conversions between torch tensors and the kernels: checks of every tensor, and pointers to its data.
// Only torch's stable headers are included: they compile in seconds, and one build works with torch 2.10 and later.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace sage {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostElements = std::numeric_limits<int32_t>::max();  // indices are int32

template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr ScalarType type = ScalarType::Float;
  static constexpr const char* name = "float32";
};
template <>
struct Type<double> {
  static constexpr ScalarType type = ScalarType::Double;
  static constexpr const char* name = "float64";
};
template <>
struct Type<int32_t> {
  static constexpr ScalarType type = ScalarType::Int;
  static constexpr const char* name = "int32";
};
template <>
struct Type<int64_t> {
  static constexpr ScalarType type = ScalarType::Long;
  static constexpr const char* name = "int64";
};
template <>
struct Type<int8_t> {
  static constexpr ScalarType type = ScalarType::Char;
  static constexpr const char* name = "int8";
};
template <>
struct Type<uint8_t> {
  static constexpr ScalarType type = ScalarType::Byte;
  static constexpr const char* name = "uint8";
};

// The bits of a float16 and of a bfloat16.
enum class Fp16 : uint16_t {};
enum class Bf16 : uint16_t {};
template <>
struct Type<Fp16> {
  static constexpr ScalarType type = ScalarType::Half;
  static constexpr const char* name = "float16";
};
template <>
struct Type<Bf16> {
  static constexpr ScalarType type = ScalarType::BFloat16;
  static constexpr const char* name = "bfloat16";
};

// Checks that x is a vector of T: one-dimensional, contiguous, on the device of `beside`, and of at most `most`
// elements, by default as many as int32 can index.
template <class T>
void check(const Tensor& x, const char* name, const Tensor& beside, int64_t most = kMostElements) {
  STD_TORCH_CHECK(x.scalar_type() == Type<T>::type, name, " has another dtype: expected ", Type<T>::name);
  STD_TORCH_CHECK(x.dim() == 1, name, " has ", x.dim(), " dimensions: expected a flat vector");
  STD_TORCH_CHECK(x.is_contiguous(), name, " is not contiguous: expected a vector without gaps; call contiguous()");
  STD_TORCH_CHECK(x.device() == beside.device(), name, " is on another device than the first vector");
  STD_TORCH_CHECK(x.numel() <= most, name, " has ", x.numel(), " elements: at most ", most,
                  " can be indexed by int32; pass it in several parts");
}

template <class T>
const T* in(const Tensor& x, const char* name, const Tensor& beside, int64_t most = kMostElements) {
  check<T>(x, name, beside, most);
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* out(const Tensor& x, const char* name, const Tensor& beside, int64_t most = kMostElements) {
  check<T>(x, name, beside, most);
  return static_cast<T*>(x.mutable_data_ptr());
}

// Returns a new, uninitialised tensor on the device of `beside`. It calls torch's C functions instead of the
// dispatcher: with cold caches, as after the rest of a step, each dispatched operator costs about 15 microseconds.
inline Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType type, const Tensor& beside) {
  int32_t device_type;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type,
      beside.get_device_index(), &made));
  return Tensor(made);
}

// Returns a new vector of n elements.
template <class T>
Tensor empty(int64_t n, const Tensor& beside) {
  const int64_t stride = 1;
  return empty(1, &n, &stride, Type<T>::type, beside);
}

// Returns a new zero-dimensional tensor of one element.
template <class T>
Tensor scalar(const Tensor& beside) {
  return empty(0, nullptr, nullptr, Type<T>::type, beside);
}

// Returns a view of the first n elements of a vector that empty() returned.
inline Tensor front(const Tensor& x, int64_t n) {
  const int64_t stride = 1;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 1, &n, &stride, 0, &made));
  return Tensor(made);
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Checks the signal and, if given, the gradient to add to it.
inline void check_signal(const Tensor& signal, const std::optional<Tensor>& grad) {
  check<float>(signal, "signal", signal);
  if (!grad) return;
  check<float>(*grad, "grad", signal);
  STD_TORCH_CHECK(grad->numel() == signal.numel(), "grad has ", grad->numel(), " elements and signal ",
                  signal.numel(), ": expected as many");
  STD_TORCH_CHECK(grad->numel() == 0 || grad->const_data_ptr() != signal.const_data_ptr(),
                  "grad and signal are one vector: pass None for grad where nothing is to be added");
}

// Checks that the groups [bounds_g, bounds_{g+1}) partition n elements; there may be none where n is 0. Returns how many
// groups there are.
inline size_t check_bounds(const std::vector<int64_t>& bounds, int64_t n) {
  STD_TORCH_CHECK(!bounds.empty() && bounds.front() == 0 && bounds.back() == n, "bounds: expected them from 0 to ", n,
                  ", the number of elements");
  for (size_t g = 0; g + 1 < bounds.size(); ++g)
    STD_TORCH_CHECK(bounds[g] <= bounds[g + 1], "bounds: expected them to ascend");
  return bounds.size() - 1;
}

inline void check_numel(const Tensor& x, int64_t n, const char* name) {
  STD_TORCH_CHECK(x.numel() == n, name, " has ", x.numel(), " elements: expected ", n);
}

// Checks a matrix with rows of n elements; returns the number of its rows.
inline int64_t check_rows(const Tensor& x, int64_t n, const char* name, const Tensor& beside) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == n && x.is_contiguous(), name, ": expected a contiguous matrix of rows of ",
                  n, " elements");
  STD_TORCH_CHECK(x.device() == beside.device(), name, " is on another device than the first vector");
  return x.size(0);
}

// Checks payloads, of which each has a row of bytes and a row of float32 numbers of each of these kinds, and the divisor of
// their sum. Returns how many there are.
inline int64_t check_payloads(const Tensor& bytes, int64_t num_bytes,
                              std::initializer_list<std::pair<const char*, Tensor>> numbers, int64_t num_numbers,
                              int64_t divisor, const Tensor& out) {
  const int64_t num = check_rows(bytes, num_bytes, "bytes", out);
  STD_TORCH_CHECK(bytes.scalar_type() == ScalarType::Byte, "bytes has another dtype: expected uint8");
  for (const auto& [name, rows] : numbers) {
    STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Float, name, " has another dtype: expected float32");
    const int64_t num_rows = check_rows(rows, num_numbers, name, out);
    STD_TORCH_CHECK(num_rows == num, name, " has ", num_rows, " rows: expected ", num, ", one for each payload");
  }
  STD_TORCH_CHECK(divisor >= 1, "divisor=", divisor, ": expected 1 or more");
  return num;
}

inline void check_bucket(int64_t bucket) {
  STD_TORCH_CHECK(bucket >= 0, "bucket=", bucket, ": expected 1 element or more, or 0 for whole groups");
}

inline void check_quantisation(int64_t bucket, int64_t norm, bool has_scales_and_grad) {
  check_bucket(bucket);
  STD_TORCH_CHECK(norm == 2 || norm == 3, "norm=", norm, ": expected 2 (Euclidean) or 3 (largest magnitude)");
  STD_TORCH_CHECK(!has_scales_and_grad, "scales are given with a gradient to add: expected one of the two");
}

// Checks the positions of n elements: those from element starts_r on are at firsts_r and behind it.
inline void check_positions(const std::vector<int64_t>& starts, const std::vector<int64_t>& firsts, int64_t n) {
  STD_TORCH_CHECK(!starts.empty() && starts.front() == 0 && starts.back() <= n && starts.size() == firsts.size(),
                  "starts: expected them from 0 to ", n, " at most, and as many as firsts");
  for (size_t r = 0; r < starts.size(); ++r) {
    STD_TORCH_CHECK(r == 0 || starts[r - 1] <= starts[r], "starts: expected them to ascend");
    STD_TORCH_CHECK(firsts[r] >= 0, "firsts: ", firsts[r], " is a position: expected 0 or more");
  }
}

// Checks a codec and its number of levels; returns what its codes stand for.
template <class Coding>
Coding coding_of(int64_t codec, int64_t levels) {
  using Codec = decltype(Coding::codec);
  constexpr auto kLast = static_cast<int64_t>(Codec::tree);
  STD_TORCH_CHECK(codec >= 0 && codec <= kLast, "codec=", codec, ": expected 0 to ", kLast);
  const bool is_natural = static_cast<Codec>(codec) == Codec::natural;
  STD_TORCH_CHECK(levels >= 1 && levels <= (is_natural ? 31 : 127), "levels=", levels,
                  ": expected 1 to 127, or to 31 where they are powers of two");
  return Coding(static_cast<Codec>(codec), static_cast<int>(levels));
}

// Checks that the groups [bounds_g, bounds_{g+1}) partition n elements and that counts_g can be taken from each;
// returns the sum of the counts.
inline int64_t check_groups(const std::vector<int64_t>& bounds, const std::vector<int64_t>& counts, int64_t n) {
  STD_TORCH_CHECK(bounds.size() == counts.size() + 1 && bounds.front() == 0 && bounds.back() == n,
                  "bounds: expected one more than counts, from 0 to ", n, ", the number of elements");
  int64_t sum = 0;
  for (size_t group = 0; group < counts.size(); ++group) {
    const int64_t size = bounds[group + 1] - bounds[group];
    STD_TORCH_CHECK(size >= 0, "bounds: expected them to ascend");
    STD_TORCH_CHECK(counts[group] >= 0 && counts[group] <= size, "counts: ", counts[group], " to take of a group of ",
                    size);
    sum += counts[group];
  }
  return sum;
}

// Checks ranks from 1, as many for each group; returns how many each has.
inline int64_t check_ranks(const std::vector<int64_t>& bounds, const std::vector<int64_t>& ranks) {
  const size_t num_groups = bounds.size() - 1, each = num_groups ? ranks.size() / num_groups : 0;
  STD_TORCH_CHECK(ranks.size() == each * num_groups, "ranks: expected as many for each of ", num_groups, " groups");
  for (size_t i = 0; i < ranks.size(); ++i) {
    const int64_t size = bounds[i / each + 1] - bounds[i / each];
    STD_TORCH_CHECK(size == 0 || (ranks[i] >= 1 && ranks[i] <= size), "ranks: ", ranks[i], " of a group of ", size);
  }
  return static_cast<int64_t>(each);
}

// Checks how much of each group is sampled, and a rank from 1 in each sample; returns the number of sampled elements.
inline int64_t check_samples(const std::vector<int64_t>& bounds, const std::vector<int64_t>& sizes,
                             const std::vector<int64_t>& ranks, const Tensor& draws) {
  const size_t num_groups = bounds.size() - 1;
  STD_TORCH_CHECK(sizes.size() == num_groups && ranks.size() == num_groups, "sizes and ranks: expected ", num_groups,
                  " of each, one for each group");
  int64_t total = 0;
  for (size_t group = 0; group < num_groups; total += sizes[group++]) {
    const int64_t n = bounds[group + 1] - bounds[group];
    STD_TORCH_CHECK(sizes[group] >= 0 && sizes[group] <= n, "sizes: ", sizes[group], " of a group of ", n);
    STD_TORCH_CHECK(ranks[group] <= sizes[group] && (ranks[group] >= 1 || sizes[group] == 0), "ranks: ", ranks[group],
                    " of ", sizes[group], " elements");
  }
  STD_TORCH_CHECK(draws.numel() == total, "draws has ", draws.numel(), " elements: expected ", total, ", one each");
  return total;
}

// Returns a new matrix of five rows.
inline Tensor five_rows(size_t num_groups, const Tensor& beside) {
  const int64_t sizes[] = {5, static_cast<int64_t>(num_groups)}, strides[] = {sizes[1], 1};
  return empty(2, sizes, strides, ScalarType::Double, beside);
}

// Checks where layers stop and how long their bins are.
inline void check_layers(const std::vector<int64_t>& stops, const std::vector<int64_t>& lengths) {
  STD_TORCH_CHECK(stops.size() == lengths.size(), "stops has ", stops.size(), " layers and lengths ", lengths.size(),
                  ": expected as many");
  int64_t before = 0;
  for (size_t l = 0; l < stops.size(); ++l) {
    STD_TORCH_CHECK(stops[l] >= before && stops[l] <= kMostElements, "stops: expected them to ascend, up to ",
                    kMostElements);
    STD_TORCH_CHECK(lengths[l] >= 1 && lengths[l] <= kMostElements, "lengths: ", lengths[l],
                    " elements in a bin: expected 1 or more");
    before = stops[l];
  }
}

inline const float* checked_scales(const Tensor& scales, const Tensor& beside, size_t layers) {
  const float* scale = in<float>(scales, "scales", beside);
  STD_TORCH_CHECK(scales.numel() == static_cast<int64_t>(layers), "scales has ", scales.numel(),
                  " elements: expected one for each of ", layers, " layers");
  return scale;
}

// Checks the numbers of groups, on which random draws depend.
inline void check_numbers(const std::vector<int64_t>& numbers, size_t num_groups) {
  STD_TORCH_CHECK(numbers.size() == num_groups, "numbers: expected as many as counts");
  for (int64_t number : numbers)
    STD_TORCH_CHECK(number >= 0 && number <= kMostElements, "numbers: ", number, ": expected 0 to ", kMostElements);
}

// Checks the number of elements of each rank.
inline void check_counts(const std::vector<int64_t>& counts, int64_t num_values, int64_t num_indices) {
  int64_t sum = 0;
  for (int64_t count : counts) {
    STD_TORCH_CHECK(count >= 0, "counts: ", count, " of a rank: expected 0 or more");
    sum += count;
  }
  STD_TORCH_CHECK(!counts.empty(), "counts: expected one for each rank, and one rank or more");
  STD_TORCH_CHECK(sum == num_values && sum == num_indices, "counts come to ", sum, "; there are ", num_values,
                  " values and ", num_indices, " indices: expected as many of each");
}

inline void check_bits(int64_t bits) { STD_TORCH_CHECK(bits >= 1 && bits <= 8, "bits=", bits, ": expected 1 to 8"); }

inline void check_packed(int64_t num_bytes, int64_t n, int64_t bits) {
  STD_TORCH_CHECK(n >= 0 && n <= kMostElements && num_bytes == (n * bits + 7) / 8, num_bytes, " bytes: expected ",
                  (n * bits + 7) / 8, " for ", n, " codes of ", bits, " bits");
}

}  // namespace sage
