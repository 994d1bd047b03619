// The schemas of all ops. cpu/*.cpp and cuda/*.cpp register the implementations; sage/ops has the typed Python
// functions, which document each op.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sage, m) {
  m.def(
      "select_(Tensor(a!) signal, Tensor(b!)? grad, float threshold, bool keep, bool clear, "
      "Tensor(c!)? histogram, int every) -> (Tensor values, Tensor indices)");
  m.def(
      "top_(Tensor(a!) signal, Tensor(b!)? grad, int[] bounds, int[] counts, bool keep, bool clear, "
      "float low=0, float high=0) "
      "-> (Tensor values, Tensor indices)");
  m.def(
      "select_groups_(Tensor(a!) signal, Tensor? grad, int[] bounds, float[] thresholds, bool keep) "
      "-> (Tensor values, Tensor indices, Tensor counts)");
  m.def("count_above(Tensor x, float threshold) -> Tensor");
  m.def("histogram_(Tensor(a!) bins, Tensor x, int every) -> ()");
  m.def(
      "ranked_moments_(Tensor(a!) signal, Tensor? grad, int[] bounds, int[] ranks) "
      "-> (Tensor moments, Tensor magnitudes)");
  m.def(
      "moments_above_(Tensor(a!) signal, Tensor? grad, int[] bounds, float[] limits) "
      "-> (Tensor moments, Tensor magnitudes, Tensor counts)");
  m.def("excess_(Tensor(a!) magnitudes, float limit) -> Tensor");
  m.def("sampled(Tensor signal, Tensor? grad, int[] bounds, int[] sizes, int[] ranks, Tensor draws) -> Tensor");
  m.def("scatter_mean_(Tensor(a!) out, Tensor values, Tensor indices, int[] counts, bool zeroed) -> ()");
  m.def("clear_(Tensor(a!) out, Tensor indices) -> ()");
  m.def("pack(Tensor codes, int bits) -> Tensor");
  m.def("unpack(Tensor bytes, int bits, int n) -> Tensor");
  m.def("cast_share_(Tensor(a!) share, Tensor grad, Tensor(b!)? residual, int world_size) -> ()");
  m.def("sum_casts_(Tensor(a!) out, Tensor rows) -> ()");
  m.def("widen_(Tensor(a!) out, Tensor x) -> ()");
  m.def("random_bits_(Tensor(a!) out, int key, int first) -> ()");
  m.def(
      "quantise_(Tensor(a!) signal, Tensor? grad, int[] bounds, int bucket, int codec, int levels, int norm, "
      "Tensor? scales, Tensor? limits, int key, int[] starts, int[] firsts, bool keep) "
      "-> (Tensor bytes, Tensor scales)");
  m.def(
      "quantise_mean_(Tensor(a!) signal, Tensor? grad, Tensor bytes, Tensor scales, int[] bounds, int bucket, "
      "int codec, int levels, int divisor, Tensor(b!) out_bytes, Tensor(c!) out_scales) -> ()");
  m.def(
      "average_(Tensor(a!) out, Tensor bytes, Tensor scales, int[] bounds, int bucket, int codec, int levels, "
      "int divisor, bool added) -> ()");
  m.def("largest_of_blocks_(Tensor(a!) signal, Tensor? grad, int[] bounds, int block) -> Tensor");
  m.def("encode_tensor_scales(Tensor largest, int[] bounds) -> (Tensor bytes, Tensor scales)");
  m.def("decode_tensor_scales(Tensor bytes, int[] bounds) -> Tensor");
  m.def("statistics_(Tensor(a!) signal, Tensor? grad, int[] bounds, int kind) -> Tensor");
  m.def("sign_bits_(Tensor(a!) signal, int[] bounds, Tensor low, Tensor high, bool keep) -> Tensor");
  m.def("momentum_signs_(Tensor(a!) momentum, Tensor signal, float beta) -> (Tensor bytes, Tensor largest)");
  m.def(
      "mean_signs_(Tensor(a!) out, Tensor bytes, Tensor low, Tensor high, int[] bounds, int divisor, bool added, "
      "bool votes) -> ()");
  m.def("sign_words(Tensor bytes, int[] bounds, bool by_column) -> Tensor");
  m.def("sign_bytes(Tensor words, int[] bounds, bool by_column) -> Tensor");
  m.def(
      "take_near_(Tensor(a!) signal, Tensor? grad, int[] stops, int[] lengths, float weight, bool keep, bool heavy) "
      "-> (Tensor values, Tensor indices, Tensor largest, Tensor counts)");
  m.def(
      "encode_bins_(Tensor(a!)? residual, Tensor indices, Tensor values, Tensor counts, Tensor scales, int[] stops, "
      "int[] lengths) -> Tensor");
  m.def("decode_bins(Tensor bytes, Tensor scales, int[] stops, int[] lengths) -> (Tensor values, Tensor indices)");
  m.def("hadamard_(Tensor(a!) x, int[] bounds, int bucket, int key, bool inverse) -> ()");
  m.def(
      "quantise_integers_(Tensor(a!) signal, Tensor bounds, Tensor steps, int[] levels, int key, int[] starts, "
      "int[] firsts, int shares, bool packed, bool keep) -> Tensor");
  m.def("sum_integers(Tensor bytes, int[] levels, int n) -> Tensor");
  m.def(
      "average_integers_(Tensor(a!) out, Tensor bytes, int bits, Tensor bounds, Tensor steps, int most, int num) "
      "-> ()");
  m.def("keep_error_(Tensor(a!) signal, Tensor sent) -> ()");
  m.def("write_product_(Tensor(a!) out, Tensor(b!)? signal, Tensor left, Tensor right, int rank) -> ()");
  m.def("thin_product_(Tensor(a!) matrix, Tensor? grad, Tensor basis, int rows, int rank, bool transposed) -> Tensor");
  m.def("largest_of_chunks(Tensor x, Tensor chunks, int num) -> (Tensor values, Tensor positions)");
  m.def("take_at_(Tensor(a!) signal, Tensor? grad, Tensor indices, bool keep) -> Tensor");
  m.def("unite(Tensor indices, int n) -> (Tensor union, Tensor places)");
  m.def("is_among(Tensor indices, Tensor others, int n) -> Tensor");
  m.def("draw_indices(Tensor beside, int[] bounds, int[] counts, int[] numbers, int key, bool distinct) -> Tensor");
  m.def("encode_gaps(Tensor indices) -> Tensor");
  m.def("decode_gaps(Tensor bytes, int num) -> Tensor");
  m.def("encode_bitmap(Tensor indices, int n) -> Tensor");
  m.def("decode_bitmap(Tensor bytes) -> Tensor");
  m.def("encode_elias(Tensor levels, int[] bounds) -> (Tensor words, Tensor bits)");
  m.def("decode_elias_(Tensor(a!) out, Tensor words, Tensor bits, int[] bounds) -> ()");
}
