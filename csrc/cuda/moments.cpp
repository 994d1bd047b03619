// Torch ops for moments, order statistics and samples of each group of a vector on a GPU. The host waits only in
// moments_above_, for the lengths of the lists.
#include "cut_tensor.h"  // first: it chooses what a stream is

#include "moments.h"
#include "segment_tensor.h"

namespace sage::cuda {

namespace {

// The moments of all groups, after the gradient has been added, as five rows.
Tensor moments_of(const Tensor& signal, const std::optional<Tensor>& grad, const std::vector<int64_t>& bounds,
                  Stream stream) {
  const DeviceCut on(bounds, 0, signal, stream);
  const Tensor pieces = empty<uint8_t>(2 * static_cast<int64_t>(sizeof(Moments)) * on.cut.num_pieces, signal);
  Tensor rows = five_rows(bounds.size() - 1, signal);
  moments(on.cut, data<float>(signal), grad ? data<float>(*grad) : nullptr,
          static_cast<Moments*>(pieces.mutable_data_ptr()), data<double>(rows), stream);
  return rows;
}

// The magnitudes of `each` ranks in each group of a signal.
Tensor ranked(const DeviceSegments& on, int64_t each, float* signal, int64_t n, const Tensor& beside, Stream stream) {
  const int64_t num = each * on.cut.num;
  const Tensor searches = on.searches(each);
  auto* states = static_cast<Search*>(searches.mutable_data_ptr());
  const Pass pass{signal, nullptr, n, false, false, nullptr, 1};
  search(on.cut, pass, static_cast<int32_t>(each), states, nullptr, 0, stream);
  Tensor magnitudes = empty<float>(num, beside);
  found(states, num, data<float>(magnitudes), stream);
  return magnitudes;
}

unsigned long long* words(const Tensor& x) { return static_cast<unsigned long long*>(x.mutable_data_ptr()); }

}  // namespace

std::tuple<Tensor, Tensor> ranked_moments_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                           std::vector<int64_t> ranks) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  const int64_t each = check_ranks(bounds, ranks);
  const OnDevice here(signal);
  Tensor rows = moments_of(signal, grad, bounds, here.stream());
  if (each == 0) return {rows, empty<float>(0, signal)};
  const DeviceSegments on(bounds, ranks, signal, here.stream());
  return {rows, ranked(on, each, data<float>(signal), signal.numel(), signal, here.stream())};
}

std::tuple<Tensor, Tensor, Tensor> moments_above_(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds,
                                                  std::vector<double> limits) {
  check_signal(signal, grad);
  const size_t num_groups = check_bounds(bounds, signal.numel());
  STD_TORCH_CHECK(limits.size() == num_groups, "limits: expected ", num_groups, ", one for each group");
  const OnDevice here(signal);
  Tensor rows = moments_of(signal, grad, bounds, here.stream());
  std::vector<int64_t> bits;
  for (double limit : limits) bits.push_back(limit_of(limit));
  const DeviceSegments on(bounds, bits, signal, here.stream());
  const int64_t num_tiles = on.cut.num_tiles;
  Tensor counts = zeros<int64_t>(static_cast<int64_t>(num_groups), signal, here.stream());
  const Tensor sums = zeros<int64_t>(num_tiles + 1, signal, here.stream()), staged = empty<float>(signal.numel(), signal);
  take_above(on.cut, data<float>(signal), data<float>(staged), words(counts), words(sums), here.stream());
  unsigned long long total = 0;
  if (num_tiles > 0) copy_to_host(&total, words(sums) + num_tiles - 1, sizeof total, here.stream());
  return {rows, copied<float>(staged, static_cast<int64_t>(total & kMostElements), here.stream()), counts};
}

Tensor excess_(Tensor magnitudes, double limit) {
  float* list = out<float>(magnitudes, "magnitudes", magnitudes);
  const int64_t n = magnitudes.numel(), num_pieces = (n + kPiece - 1) / kPiece;
  const OnDevice here(magnitudes);
  Tensor found = zeros<double>(4, magnitudes, here.stream());
  const Tensor sums = zeros<int64_t>(tiles(n) + 1, magnitudes, here.stream());
  const Tensor pieces = empty<uint8_t>(2 * static_cast<int64_t>(sizeof(Moments)) * num_pieces, magnitudes);
  const Tensor state = empty<uint8_t>(sizeof(Excess), magnitudes);
  STD_CUDA_CHECK(cudaMemsetAsync(state.mutable_data_ptr(), 0xff, sizeof(Excess), here.stream()));
  excess(list, n, limit_of(limit), static_cast<Excess*>(state.mutable_data_ptr()),
         static_cast<Moments*>(pieces.mutable_data_ptr()), words(sums), data<double>(found), here.stream());
  return found;
}

// Whether the draws are below 65,536 is not examined on a GPU: of a larger one the low bits are used.
Tensor sampled(Tensor signal, std::optional<Tensor> grad, std::vector<int64_t> bounds, std::vector<int64_t> sizes,
               std::vector<int64_t> ranks, Tensor draws) {
  check_signal(signal, grad);
  check_bounds(bounds, signal.numel());
  const int32_t* draws_S = in<int32_t>(draws, "draws", signal);
  const int64_t total = check_samples(bounds, sizes, ranks, draws);
  const OnDevice here(signal);
  std::vector<int64_t> before{0}, wanted = ranks;  // elements of the samples before
  for (int64_t size : sizes) before.push_back(before.back() + size);
  wanted.insert(wanted.end(), bounds.begin(), bounds.end());
  const DeviceSegments on(before, wanted, signal, here.stream());
  const Tensor seen = empty<float>(total, signal);
  sample(on.cut, total, data<float>(signal), grad ? data<float>(*grad) : nullptr, draws_S, data<float>(seen),
         here.stream());
  return ranked(on, 1, data<float>(seen), total, signal, here.stream());
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("ranked_moments_", TORCH_BOX(&sage::cuda::ranked_moments_));
  m.impl("moments_above_", TORCH_BOX(&sage::cuda::moments_above_));
  m.impl("excess_", TORCH_BOX(&sage::cuda::excess_));
  m.impl("sampled", TORCH_BOX(&sage::cuda::sampled));
}
