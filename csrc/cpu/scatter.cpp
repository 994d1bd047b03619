// Torch ops for the mean of sparse vectors on the CPU.
#include "scatter.h"

#include "team.h"

namespace sage::cpu {

namespace {

void check_inside(const int32_t* at, int64_t num, int64_t n) {
  // Indices nearly always ascend; then it is sufficient to check the first and the last one.
  const bool is = num == 0 || (ascends(at, num) ? at[0] >= 0 && at[num - 1] < n : inside(at, num, n));
  STD_TORCH_CHECK(is, "indices: expected all from 0 up to ", n - 1, ", the last element's");
}

}  // namespace

void scatter_mean_(Tensor out_N, Tensor values, Tensor indices, std::vector<int64_t> counts, bool zeroed) {
  float* sum = out<float>(out_N, "out", out_N);
  const float* value = in<float>(values, "values", out_N);
  const int32_t* index = in<int32_t>(indices, "indices", out_N);
  check_counts(counts, values.numel(), indices.numel());
  std::vector<Sparse> ranks;
  for (int64_t count : counts) {
    ranks.push_back({value, index, count});
    check_inside(ranks.back().indices, count, out_N.numel());
    value += count;
    index += count;
  }
  scatter_mean(torch_team(), ranks, zeroed, sum, out_N.numel());
}

void clear_(Tensor out_N, Tensor indices) {
  float* x = out<float>(out_N, "out", out_N);
  const int32_t* at = in<int32_t>(indices, "indices", out_N);
  check_inside(at, indices.numel(), out_N.numel());
  clear(x, at, indices.numel());
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("scatter_mean_", TORCH_BOX(&sage::cpu::scatter_mean_));
  m.impl("clear_", TORCH_BOX(&sage::cpu::clear_));
}
