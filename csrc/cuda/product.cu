// The product of two thin matrices on a GPU, and what a signal keeps when it was sent, in one pass.
#include "groups.cuh"

namespace sage::cuda {

namespace {

constexpr int kRows = 4;  // of a thread: as often is a quad of the right matrix used

// A block's threads lie `across` side by side, each with a quad of kRows rows; `blocks_across` blocks cover the columns.
__global__ void product_kernel(Product x, int across, int64_t blocks_across) {
  const int64_t column = 4 * (blockIdx.x % blocks_across * across + threadIdx.x % across);
  const int64_t row = (blockIdx.x / blocks_across * (kThreads / across) + threadIdx.x / across) * kRows;
  if (column >= x.columns || row >= x.rows) return;
  float sum[kRows][4], own[kRows][4];
  SAGE_UNROLL
  for (int r = 0; r < kRows; ++r)
    if (x.signal && row + r < x.rows) load_quad(x.signal + (row + r) * x.columns, column, x.columns, own[r]);
  for (int64_t k = 0; k < x.rank; ++k) {
    float right[4];
    load_quad(x.right + k * x.columns, column, x.columns, right);
    SAGE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float left = row + r < x.rows ? x.left[(row + r) * x.rank + k] : 0;
      for (int j = 0; j < 4; ++j) {
        const float product = left * right[j];
        sum[r][j] = k == 0 ? product : sum[r][j] + product;
      }
    }
  }
  SAGE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (row + r >= x.rows) continue;
    store_quad(x.out + (row + r) * x.columns, column, x.columns, sum[r]);
    if (!x.signal) continue;
    for (int j = 0; j < 4; ++j) own[r][j] = finite_or_zero(own[r][j] - sum[r][j]);
    store_quad(x.signal + (row + r) * x.columns, column, x.columns, own[r]);
  }
}

}  // namespace

void write_product(const Product& x, Stream stream) {
  if (x.rows == 0 || x.columns == 0) return;
  const int64_t quads = (x.columns + 3) / 4;
  int across = 8;
  while (across < quads && across < kThreads) across *= 2;
  const int64_t blocks_across = (quads + across - 1) / across, high = kThreads / across * kRows;
  SAGE_LAUNCH(product_kernel, blocks_across * ((x.rows + high - 1) / high), stream, x, across, blocks_across);
}

}  // namespace sage::cuda
