// The mean of sparse vectors on the CPU, for torch.
#include "scatter.h"

#include "team.h"

namespace sage::cpu {

void scatter_mean_(Tensor out_N, Tensor values, Tensor indices, std::vector<int64_t> counts, bool zeroed) {
  float* sum = out<float>(out_N, "out", out_N);
  const float* value = in<float>(values, "values", out_N);
  const int32_t* index = in<int32_t>(indices, "indices", out_N);
  check_counts(counts, values.numel(), indices.numel());
  std::vector<Sparse> ranks;
  bool ascending = true;
  for (int64_t count : counts) {
    ranks.push_back({value, index, count});
    const Order found = order(ranks.back(), out_N.numel());
    STD_TORCH_CHECK(found != Order::outside, "rank ", ranks.size() - 1, "'s indices: expected all from 0 up to ",
                    out_N.numel() - 1, ", the last element's");
    ascending = ascending && found == Order::ascending;
    value += count;
    index += count;
  }
  scatter_mean(torch_team(), ranks, ascending, zeroed, sum, out_N.numel());
}

void clear_(Tensor out_N, Tensor indices) {
  float* x = out<float>(out_N, "out", out_N);
  const int32_t* at = in<int32_t>(indices, "indices", out_N);
  STD_TORCH_CHECK(order({nullptr, at, indices.numel()}, out_N.numel()) != Order::outside,
                  "indices: expected all from 0 up to ", out_N.numel() - 1, ", the last element's");
  clear(x, at, indices.numel());
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("scatter_mean_", TORCH_BOX(&sage::cpu::scatter_mean_));
  m.impl("clear_", TORCH_BOX(&sage::cpu::clear_));
}
