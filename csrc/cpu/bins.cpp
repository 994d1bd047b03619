// Torch ops for AdaComp's bins on the CPU.
#include "bin_codes.h"

#include "team.h"
#include "tensors.h"

namespace sage::cpu {

namespace {

std::vector<Layer> checked_layers(const std::vector<int64_t>& stops, const std::vector<int64_t>& lengths) {
  check_layers(stops, lengths);
  return layers_of(stops, lengths);
}

int64_t total_bins(const std::vector<Layer>& layers) {
  return layers.empty() ? 0 : layers.back().first_bin + layers.back().bins();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> take_near_(Tensor signal, std::optional<Tensor> grad,
                                                      std::vector<int64_t> stops, std::vector<int64_t> lengths,
                                                      double weight, bool keep, bool heavy) {
  check_signal(signal, grad);
  const std::vector<Layer> layers = checked_layers(stops, lengths);
  const int64_t n = signal.numel(), bins = total_bins(layers);
  STD_TORCH_CHECK((layers.empty() ? 0 : layers.back().end) == n, "stops: expected the last to be ", n,
                  ", the number of elements");
  float* a = data<float>(signal);
  const Near near{a, grad ? data<float>(*grad) : a, static_cast<float>(weight), grad.has_value(), keep, heavy};
  Tensor largest = empty<float>(bins, signal), counts = empty<int32_t>(bins, signal);
  TensorList list(signal);
  take_near(isa(), torch_team(), near, layers, n, data<float>(largest), data<int32_t>(counts), list);
  auto [values, indices] = list.tensors();
  return {values, indices, largest, counts};
}

Tensor encode_bins_(std::optional<Tensor> residual, Tensor indices, Tensor values, Tensor counts, Tensor scales,
                    std::vector<int64_t> stops, std::vector<int64_t> lengths) {
  const std::vector<Layer> layers = checked_layers(stops, lengths);
  const FromBins taken{in<int32_t>(indices, "indices", indices), in<float>(values, "values", indices),
                    in<int32_t>(counts, "counts", indices)};
  const float* scale = checked_scales(scales, indices, layers.size());
  float* left = residual ? out<float>(*residual, "residual", indices) : nullptr;
  const int64_t n = layers.empty() ? 0 : layers.back().end;
  STD_TORCH_CHECK(!residual || residual->numel() == n, "residual: expected ", n, " elements, as many as in the layers");
  STD_TORCH_CHECK(counts.numel() == total_bins(layers) && values.numel() == indices.numel(), "counts has ",
                  counts.numel(), " elements: expected one for each of ", total_bins(layers), " bins");
  const int64_t num_bytes = coded_bytes(layers, taken, indices.numel());
  STD_TORCH_CHECK(num_bytes >= 0, "counts: expected a sum of ", indices.numel(), ", the number of elements taken");
  Tensor bytes = empty<uint8_t>(num_bytes, indices);
  STD_TORCH_CHECK(encode_layers(layers, taken, scale, left, data<uint8_t>(bytes)),
                  "indices: expected as many in each bin as counts says");
  return bytes;
}

std::tuple<Tensor, Tensor> decode_bins(Tensor bytes, Tensor scales, std::vector<int64_t> stops,
                                       std::vector<int64_t> lengths) {
  const std::vector<Layer> layers = checked_layers(stops, lengths);
  const uint8_t* coded = in<uint8_t>(bytes, "bytes", bytes);
  const float* scale = checked_scales(scales, bytes, layers.size());
  TensorList list(bytes);
  list.reserve(bytes.numel() + 1);
  list.size = decode_layers(layers, coded, bytes.numel(), scale, list.indices, list.values);
  STD_TORCH_CHECK(list.size >= 0, "bytes: not those of ", total_bins(layers), " bins");
  auto [values, indices] = list.tensors();
  return {values, indices};
}

}  // namespace sage::cpu

STABLE_TORCH_LIBRARY_IMPL(sage, CPU, m) {
  m.impl("take_near_", TORCH_BOX(&sage::cpu::take_near_));
  m.impl("encode_bins_", TORCH_BOX(&sage::cpu::encode_bins_));
  m.impl("decode_bins", TORCH_BOX(&sage::cpu::decode_bins));
}
