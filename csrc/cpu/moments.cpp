// Torch ops for moments, order statistics and samples of each group of a vector on the CPU.
#include "moments.h"

#include "sampled.h"
#include "team.h"

namespace sage::cpu {

namespace {

double number(uint32_t magnitude) {
  float x;
  std::memcpy(&x, &magnitude, sizeof x);
  return x;
}

// Writes the moments of group `group` to a column of a matrix of five rows.
void write(const Moments& found, double* out, size_t group, size_t num_groups) {
  const double each[] = {found.sum, found.absolute, found.square, static_cast<double>(found.nonzero),
                         number(found.most)};
  for (int row = 0; row < 5; ++row) out[row * num_groups + group] = each[row];
}

}  // namespace

std::tuple<Tensor, Tensor> ranked_moments_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                           std::vector<int64_t> ranks) {
  check_signal(signal, grad);
  const size_t num_groups = check_bounds(bounds, signal.numel()), each = static_cast<size_t>(check_ranks(bounds, ranks));
  Tensor rows = five_rows(num_groups, signal), ranked = empty<float>(static_cast<int64_t>(ranks.size()), signal);
  const Team team = torch_team();
  std::vector<uint32_t> found(each);
  for (size_t group = 0; group < num_groups; ++group) {
    const int64_t begin = bounds[group];
    const Moments all = ranked_moments(isa(), team, data<float>(signal) + begin, grad ? data<float>(*grad) + begin : nullptr,
                                       bounds[group + 1] - begin, ranks.data() + group * each,
                                       static_cast<int64_t>(each), found.data());
    write(all, data<double>(rows), group, num_groups);
    if (each > 0) std::memcpy(data<float>(ranked) + group * each, found.data(), each * sizeof(float));
  }
  return {rows, ranked};
}

std::tuple<Tensor, Tensor, Tensor> moments_above_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                                  std::vector<double> limits) {
  check_signal(signal, grad);
  const size_t num_groups = check_bounds(bounds, signal.numel());
  STD_TORCH_CHECK(limits.size() == num_groups, "limits: expected ", num_groups, ", one for each group");
  Tensor rows = five_rows(num_groups, signal), counts = empty<int64_t>(static_cast<int64_t>(num_groups), signal);
  const Team team = torch_team();
  static thread_local std::vector<Band> above;
  if (above.size() < num_groups) above.resize(num_groups);
  std::vector<int64_t> sizes(num_groups);
  for (size_t group = 0; group < num_groups; ++group) {
    const int64_t begin = bounds[group], n = bounds[group + 1] - begin, parts = team.parts(n);
    const uint32_t limit = limit_of(static_cast<float>(limits[group]));
    above[group].begin(limit, kNothing, parts, 0);
    const Moments all = moments(isa(), team, data<float>(signal) + begin, grad ? data<float>(*grad) + begin : nullptr,
                                n, parts, &above[group], 1);
    write(all, data<double>(rows), group, num_groups);
    sizes[group] = data<int64_t>(counts)[group] = above[group].size();
  }
  Tensor magnitudes = empty<float>(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), signal);
  auto* out = static_cast<uint32_t*>(magnitudes.mutable_data_ptr());
  for (size_t group = 0; group < num_groups; out += sizes[group++]) above[group].copy(out);
  return {rows, magnitudes, counts};
}

Tensor excess_(Tensor magnitudes, double limit) {
  check<float>(magnitudes, "magnitudes", magnitudes);
  const Excess found = excess(isa(), torch_team(), data<float>(magnitudes), magnitudes.numel(), limit_of(static_cast<float>(limit)));
  Tensor out = empty<double>(4, magnitudes);
  const double each[] = {static_cast<double>(found.num), found.num ? number(found.least) : 0, found.sum, found.square};
  std::memcpy(data<double>(out), each, sizeof each);
  return out;
}

Tensor sampled(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, std::vector<int64_t> sizes,
               std::vector<int64_t> ranks, Tensor draws) {
  check_signal(signal, grad);
  const size_t num_groups = check_bounds(bounds, signal.numel());
  const int32_t* draws_S = in<int32_t>(draws, "draws", signal);
  const int64_t total = check_samples(bounds, sizes, ranks, draws);
  for (int64_t i = 0; i < total; ++i)
    STD_TORCH_CHECK(draws_S[i] >> 16 == 0, "draws: ", draws_S[i], " is not from 0 to 65535");
  Tensor out = empty<float>(static_cast<int64_t>(num_groups), signal);
  for (size_t group = 0; group < num_groups; draws_S += sizes[group++]) {
    const int64_t begin = bounds[group];
    uint32_t found = 0;
    if (sizes[group] > 0)
      found = sampled(data<float>(signal) + begin, grad ? data<float>(*grad) + begin : nullptr,
                      bounds[group + 1] - begin, sizes[group], draws_S, ranks[group]);
    std::memcpy(data<float>(out) + group, &found, sizeof found);
  }
  return out;
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("ranked_moments_", TORCH_BOX(&sage::cpu::ranked_moments_));
  m.impl("moments_above_", TORCH_BOX(&sage::cpu::moments_above_));
  m.impl("excess_", TORCH_BOX(&sage::cpu::excess_));
  m.impl("sampled", TORCH_BOX(static_cast<torch::stable::Tensor (*)(
                        torch::stable::Tensor, std::optional<torch::stable::Tensor>, std::vector<int64_t>,
                        std::vector<int64_t>, std::vector<int64_t>, torch::stable::Tensor)>(&sage::cpu::sampled)));
}
