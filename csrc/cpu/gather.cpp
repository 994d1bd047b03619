// Torch ops on given or random elements on the CPU.
#include "gather.h"

#include "distinct.h"
#include "team.h"
#include "union.h"

namespace sage::cpu {

namespace {

const int32_t* inside_of(const Tensor& indices, const char* name, int64_t n) {
  const int32_t* at = in<int32_t>(indices, name, indices);
  STD_TORCH_CHECK(n >= 0 && n <= kMostElements, "n=", n, ": expected 0 to ", kMostElements);
  STD_TORCH_CHECK(inside(at, indices.numel(), n), name, ": expected all from 0 up to ", n - 1);
  return at;
}

}  // namespace

Tensor take_at_(Tensor signal, std::optional<Tensor> grad, Tensor indices, bool keep) {
  check_signal(signal, grad);
  const int32_t* at = in<int32_t>(indices, "indices", signal);
  STD_TORCH_CHECK(inside(at, indices.numel(), signal.numel()), "indices: expected all from 0 up to ",
                  signal.numel() - 1);
  Tensor values = empty<float>(indices.numel(), signal);
  take_at(torch_team(), data<float>(signal), grad ? data<float>(*grad) : nullptr, signal.numel(), at, indices.numel(),
          keep, data<float>(values));
  return values;
}

Tensor draw_indices(Tensor beside, std::vector<int64_t> bounds, std::vector<int64_t> counts,
                    std::vector<int64_t> numbers, int64_t key, bool distinct) {
  const int64_t n = bounds.empty() ? 0 : bounds.back();
  STD_TORCH_CHECK(n <= kMostElements, "bounds: at most ", kMostElements, " elements can be indexed by int32");
  const int64_t num = check_groups(bounds, counts, n);
  check_numbers(numbers, counts.size());
  Tensor indices = empty<int32_t>(num, beside);
  int64_t size = 0;
  for (size_t group = 0; group < counts.size(); ++group)
    size += draw_group(isa(), static_cast<uint64_t>(key), numbers[group], bounds[group + 1] - bounds[group],
                       counts[group], distinct, bounds[group], data<int32_t>(indices) + size);
  return front(indices, size);
}

std::tuple<Tensor, Tensor> united(Tensor indices, int64_t n) {
  const int64_t num = indices.numel();
  const int32_t* at = inside_of(indices, "indices", n);
  Tensor different = empty<int32_t>(std::min(num, n), indices), places = empty<int32_t>(num, indices);
  const int64_t size = unite(at, num, n, data<int32_t>(different), data<int32_t>(places));
  return {front(different, size), places};
}

Tensor is_among(Tensor indices, Tensor others, int64_t n) {
  const int32_t* at = inside_of(indices, "indices", n);
  const uint64_t* words = bitmap_of(inside_of(others, "others", n), others.numel(), n);
  Tensor among = empty<uint8_t>(indices.numel(), indices);
  find_members(words, at, indices.numel(), data<uint8_t>(among));
  return among;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("take_at_", TORCH_BOX(&sage::cpu::take_at_));
  m.impl("unite", TORCH_BOX(&sage::cpu::united));
  m.impl("is_among", TORCH_BOX(&sage::cpu::is_among));
  m.impl("draw_indices", TORCH_BOX(&sage::cpu::draw_indices));
}
