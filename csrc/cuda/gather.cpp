// Torch ops on given or random elements on a GPU. Indices are not checked, because the host would have to wait: those outside
// of the vector are in no union, and their values are NaN.
#include "stream.h"

namespace sage::cuda {

namespace {

// A bitmap of n elements, in which nothing is set, and further words that are 0.
struct DeviceBitmap {
  Tensor memory, counts, before;
  Bitmap bits;
  int32_t* further;

  DeviceBitmap(int64_t n, bool has_places, int64_t num_further, const Tensor& beside, Stream stream)
      : memory(empty<int32_t>((bitmap_words(n) + num_further + 3) / 4 * 4, beside)),
        counts(empty<int32_t>(bit_tiles(n) + 1, beside)),
        before(empty<int32_t>(has_places ? bitmap_words(n) : 0, beside)) {
    uint32_t* words = static_cast<uint32_t*>(memory.mutable_data_ptr());
    bits = {words, n, has_places ? data<int32_t>(before) : nullptr, data<int32_t>(counts)};
    further = data<int32_t>(memory) + bitmap_words(n);
    zero(words, memory.numel(), stream);
  }

  // Counts the set bits and waits for their number.
  int64_t total(Stream stream) const {
    int32_t num = 0;
    STD_CUDA_CHECK(cudaMemcpyAsync(&num, bits.counts + bit_tiles(bits.n), sizeof num, cudaMemcpyDeviceToHost, stream));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream));
    return num;
  }
};

void check_n(int64_t n) {
  STD_TORCH_CHECK(n >= 0 && n <= kMostElements, "n=", n, ": expected 0 to ", kMostElements);
}

}  // namespace

Tensor take_at_(Tensor signal, std::optional<Tensor> grad, Tensor indices, bool keep) {
  check_signal(signal, grad);
  const int32_t* at = in<int32_t>(indices, "indices", signal);
  const OnDevice here(signal);
  Tensor values = empty<float>(indices.numel(), signal);
  take_at(data<float>(signal), grad ? in<float>(*grad, "grad", signal) : nullptr, signal.numel(), at, indices.numel(), keep,
          data<float>(values), here.stream());
  return values;
}

// The host waits only if elements can be drawn twice, for the number of different ones.
Tensor draw_indices(Tensor beside, std::vector<int64_t> bounds, std::vector<int64_t> counts,
                    std::vector<int64_t> numbers, int64_t key, bool distinct) {
  const int64_t n = bounds.empty() ? 0 : bounds.back();
  STD_TORCH_CHECK(n <= kMostElements, "bounds: at most ", kMostElements, " elements can be indexed by int32");
  const int64_t num = check_groups(bounds, counts, n);
  check_numbers(numbers, counts.size());
  const OnDevice here(beside);
  const DrawTable table(bounds, counts, numbers, distinct);
  const Tensor words = empty<int32_t>(static_cast<int64_t>(table.words.size()), beside);
  upload(table.words, data<int32_t>(words), here.stream());
  const DeviceBitmap on(n, false, int64_t{table.num_rounds} * table.num_groups, beside, here.stream());
  draw(table.at(data<int32_t>(words), static_cast<uint64_t>(key), distinct, on.bits.words, on.further), table, here.stream());
  count_bits(on.bits, here.stream());
  Tensor indices = empty<int32_t>(num, beside);
  list_bits(on.bits, data<int32_t>(indices), here.stream());
  return distinct ? indices : front(indices, on.total(here.stream()));
}

// The host waits only for the number of different indices.
std::tuple<Tensor, Tensor> united(Tensor indices, int64_t n) {
  const int64_t num = indices.numel();
  const int32_t* at = in<int32_t>(indices, "indices", indices);
  check_n(n);
  const OnDevice here(indices);
  const DeviceBitmap on(n, true, 0, indices, here.stream());
  Tensor different = empty<int32_t>(num < n ? num : n, indices), places = empty<int32_t>(num, indices);
  set_bits(on.bits, at, num, here.stream());
  count_bits(on.bits, here.stream());
  list_bits(on.bits, data<int32_t>(different), here.stream());
  find_places(on.bits, at, num, data<int32_t>(places), here.stream());
  return {front(different, on.total(here.stream())), places};
}

Tensor is_among(Tensor indices, Tensor others, int64_t n) {
  const int32_t* at = in<int32_t>(indices, "indices", indices);
  const int32_t* other = in<int32_t>(others, "others", indices);
  check_n(n);
  const OnDevice here(indices);
  const DeviceBitmap on(n, false, 0, indices, here.stream());
  Tensor among = empty<uint8_t>(indices.numel(), indices);
  set_bits(on.bits, other, others.numel(), here.stream());
  find_members(on.bits, at, indices.numel(), data<uint8_t>(among), here.stream());
  return among;
}

}  // namespace sage::cuda

STABLE_TORCH_LIBRARY_IMPL(sage, CUDA, m) {
  m.impl("take_at_", TORCH_BOX(&sage::cuda::take_at_));
  m.impl("unite", TORCH_BOX(&sage::cuda::united));
  m.impl("is_among", TORCH_BOX(&sage::cuda::is_among));
  m.impl("draw_indices", TORCH_BOX(&sage::cuda::draw_indices));
}
