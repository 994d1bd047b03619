// What a signal keeps of itself on a GPU when something was sent.
#include "groups.cuh"

namespace sage::cuda {

namespace {

__global__ void keep_error_kernel(float* signal, const float* sent, int64_t n) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  float a[kQuads][4], b[kQuads][4];
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    load_quad(signal, quad_at(begin, c), n, a[c]);
    load_quad(sent, quad_at(begin, c), n, b[c]);
  }
  SAGE_UNROLL
  for (int c = 0; c < kQuads; ++c) {
    for (int j = 0; j < 4; ++j) a[c][j] = finite_or_zero(a[c][j] - b[c][j]);
    store_quad(signal, quad_at(begin, c), n, a[c]);
  }
}

}  // namespace

void keep_error(float* signal, const float* sent, int64_t n, Stream stream) {
  if (n > 0) SAGE_LAUNCH(keep_error_kernel, tiles(n), stream, signal, sent, n);
}

}  // namespace sage::cuda
