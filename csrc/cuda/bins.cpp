// Torch ops for AdaComp's bins on a GPU. The host waits once in each, for the number of elements or bytes.
#include "stream.h"  // first: it chooses what a stream is

#include "bins.h"

namespace sage::cuda {

namespace {

// The table of layers on the device.
class DeviceLayers {
 public:
  DeviceLayers(const std::vector<int64_t>& stops, const std::vector<int64_t>& lengths, const Tensor& beside, Stream stream)
      : table_(stops, lengths), words_(empty<int32_t>(static_cast<int64_t>(table_.words.size()), beside)) {
    upload(table_.words, data<int32_t>(words_), stream);
    layers = table_.at(data<int32_t>(words_));
  }

  Layers layers;

 private:
  LayerTable table_;
  Tensor words_;
};

// The totals that are in the last bytes of a tensor, when the device has computed them.
BinTotals totals_of(const BinTotals* totals, Stream stream) {
  BinTotals found;
  copy_to_host(&found, totals, sizeof found, stream);
  return found;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> take_near_(Tensor signal, std::optional<Tensor> grad,
                                                      std::vector<int64_t> stops, std::vector<int64_t> lengths,
                                                      double weight, bool keep, bool heavy) {
  check_signal(signal, grad);
  check_layers(stops, lengths);
  const int64_t n = signal.numel();
  STD_TORCH_CHECK((stops.empty() ? 0 : stops.back()) == n, "stops: expected the last to be ", n,
                  ", the number of elements");
  const OnDevice here(signal);
  const DeviceLayers on(stops, lengths, signal, here.stream());
  const int64_t num_bins = on.layers.num_bins;
  const Near near{data<float>(signal), grad ? data<float>(*grad) : nullptr, n, static_cast<float>(weight), keep, heavy};
  Tensor largest = zeros<float>(num_bins, signal, here.stream()), counts = zeros<int32_t>(num_bins, signal, here.stream());
  const Tensor sums = zeros<int64_t>(tiles(n) + 1, signal, here.stream());
  const Tensor staged = empty<float>(n, signal), places = empty<int32_t>(n, signal);
  auto* word = static_cast<unsigned long long*>(sums.mutable_data_ptr());
  take_near(on.layers, near, static_cast<uint32_t*>(largest.mutable_data_ptr()), data<int32_t>(counts), word,
            data<float>(staged), data<int32_t>(places), here.stream());
  unsigned long long total = 0;
  if (n > 0) copy_to_host(&total, word + tiles(n) - 1, sizeof total, here.stream());
  const auto num = static_cast<int64_t>(total & kMostElements);
  return {copied<float>(staged, num, here.stream()), copied<int32_t>(places, num, here.stream()), largest, counts};
}

Tensor encode_bins_(std::optional<Tensor> residual, Tensor indices, Tensor values, Tensor counts, Tensor scales,
                    std::vector<int64_t> stops, std::vector<int64_t> lengths) {
  check_layers(stops, lengths);
  const FromBins taken{in<int32_t>(indices, "indices", indices), in<float>(values, "values", indices),
                       in<int32_t>(counts, "counts", indices), indices.numel()};
  const float* scale = checked_scales(scales, indices, stops.size());
  float* left = residual ? out<float>(*residual, "residual", indices) : nullptr;
  const int64_t n = stops.empty() ? 0 : stops.back();
  STD_TORCH_CHECK(!residual || residual->numel() == n, "residual: expected ", n, " elements, as many as in the layers");
  const OnDevice here(indices);
  const DeviceLayers on(stops, lengths, indices, here.stream());
  const int64_t num_bins = on.layers.num_bins;
  STD_TORCH_CHECK(counts.numel() == num_bins && values.numel() == indices.numel(), "counts has ", counts.numel(),
                  " elements: expected one for each of ", num_bins, " bins");
  STD_TORCH_CHECK(num_bins + taken.num <= kMostElements, num_bins, " bins and ", taken.num, " elements: expected ",
                  kMostElements, " or less in all");
  const Tensor elements = empty<int32_t>(num_bins, indices), entries = empty<int32_t>(num_bins, indices);
  const Tensor begins = empty<int64_t>(on.layers.num, indices);
  const int64_t num_sums = tiles(num_bins) + 1;
  const Tensor sums = zeros<int64_t>(num_sums + kTotalWords, indices, here.stream());
  auto* word = static_cast<unsigned long long*>(sums.mutable_data_ptr());
  auto* totals = reinterpret_cast<BinTotals*>(word + num_sums);
  place_entries(on.layers, taken, data<int32_t>(elements), data<int32_t>(entries), data<int64_t>(begins), word, totals,
                here.stream());
  const BinTotals found = totals_of(totals, here.stream());
  STD_TORCH_CHECK(found.taken == static_cast<unsigned long long>(taken.num), "counts: expected a sum of ", taken.num,
                  ", the number of elements taken");
  STD_TORCH_CHECK(found.wrong == 0, "indices: expected as many in each bin as counts says");
  Tensor bytes = empty<uint8_t>(static_cast<int64_t>(found.bytes), indices);
  encode_bins(on.layers, taken, scale, data<int32_t>(elements), data<int32_t>(entries), data<int64_t>(begins), left,
              data<uint8_t>(bytes), here.stream());
  return bytes;
}

std::tuple<Tensor, Tensor> decode_bins(Tensor bytes, Tensor scales, std::vector<int64_t> stops,
                                       std::vector<int64_t> lengths) {
  check_layers(stops, lengths);
  const uint8_t* coded = in<uint8_t>(bytes, "bytes", bytes);
  const float* scale = checked_scales(scales, bytes, stops.size());
  const int64_t num_bytes = bytes.numel(), num_sums = kWidths * (tiles(num_bytes) + 1);
  const OnDevice here(bytes);
  const DeviceLayers on(stops, lengths, bytes, here.stream());
  const Tensor sums = zeros<int64_t>(num_sums + kTotalWords, bytes, here.stream());
  auto* word = static_cast<unsigned long long*>(sums.mutable_data_ptr());
  auto* totals = reinterpret_cast<BinTotals*>(word + num_sums);
  const Tensor staged = empty<float>(num_bytes, bytes), places = empty<int32_t>(num_bytes, bytes);
  const Tensor shifts = empty<int32_t>(on.layers.num, bytes);
  decode_entries(on.layers, coded, num_bytes, scale, data<float>(staged), data<int32_t>(places), data<int32_t>(shifts),
                 word, totals, here.stream());
  const BinTotals found = totals_of(totals, here.stream());
  STD_TORCH_CHECK(found.wrong == 0 && found.stopped[kWidths] == static_cast<unsigned long long>(num_bytes) + 1,
                  "bytes: not those of ", on.layers.num_bins, " bins");
  const auto num = static_cast<int64_t>(found.found[kWidths]);
  Tensor values = empty<float>(num, bytes), indices = empty<int32_t>(num, bytes);
  order_elements(on.layers, num, data<float>(staged), data<int32_t>(places), data<int32_t>(shifts), data<float>(values),
                 data<int32_t>(indices), here.stream());
  return {values, indices};
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("take_near_", TORCH_BOX(&sage::cuda::take_near_));
  m.impl("encode_bins_", TORCH_BOX(&sage::cuda::encode_bins_));
  m.impl("decode_bins", TORCH_BOX(&sage::cuda::decode_bins));
}
