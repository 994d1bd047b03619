// Given elements of signal + gradient on a GPU.
#include "groups.cuh"

namespace sage::cuda {

namespace {

__global__ void add_kernel(float* signal, const float* grad, int64_t n) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kQuads][4], b[kQuads][4];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    load_quad(signal, quad_at(begin, c), n, a[c]);
    load_quad(grad, quad_at(begin, c), n, b[c]);
  }
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    for (int j = 0; j < 4; ++j) a[c][j] += b[c][j];
    store_quad(signal, quad_at(begin, c), n, a[c]);
  }
}

__global__ void gather_kernel(const float* signal, int64_t n, const int32_t* at, int64_t num, float* values) {
  const int64_t i = thread_index();
  if (i < num) values[i] = at[i] >= 0 && at[i] < n ? signal[at[i]] : float_of(0x7fc00000u);
}

}  // namespace

void take_at(float* signal, const float* grad, int64_t n, const int32_t* at, int64_t num, bool keep, float* values,
             Stream stream) {
  if (grad && n > 0) SAGE_LAUNCH(add_kernel, tiles(n), stream, signal, grad, n);
  if (num > 0) SAGE_LAUNCH(gather_kernel, blocks_of(num), stream, signal, n, at, num, values);
  if (keep) clear(signal, n, at, num, stream);  // behind the others: an index may be there twice
}

}  // namespace sage::cuda
