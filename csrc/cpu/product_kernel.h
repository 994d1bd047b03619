// Rows of a product of two thin matrices, and what a signal keeps when they were sent. Included by each_isa.h.

// Writes columns [j, j + 16·kRegisters) of one row: the sum over k of left[k]·right[k·columns + j], in order of k.
template <int kRegisters>
inline void product_block(const float* left, const float* right, int64_t rank, int64_t columns, int64_t j, float* out,
                          float* signal, bool streams) {
  F sum[kRegisters];
  for (int v = 0; v < kRegisters; ++v) sum[v] = mul(set(left[0]), load(right + j + 16 * v));
  for (int64_t k = 1; k < rank; ++k)
    for (int v = 0; v < kRegisters; ++v)
      sum[v] = add(sum[v], mul(set(left[k]), load(right + k * columns + j + 16 * v)));
  for (int v = 0; v < kRegisters; ++v) {
    float* to = out + j + 16 * v;
    if (streams)
      stream(to, sum[v]);
    else
      store(to, sum[v]);
    if (signal) store(signal + j + 16 * v, finite_or_zero(sub(load(signal + j + 16 * v), sum[v])));
  }
}

// Rows [begin, end) of left (rows × rank) times right (rank × columns); `signal` may be null.
void product_rows(const float* left, const float* right, int64_t rank, int64_t columns, int64_t begin, int64_t end,
                  float* out, float* signal, bool streams) {
  for (int64_t i = begin; i < end; ++i) {
    float *row = out + i * columns, *own = signal ? signal + i * columns : nullptr;
    int64_t j = 0;
    for (; j + 64 <= columns; j += 64) product_block<4>(left + i * rank, right, rank, columns, j, row, own, streams);
    for (; j + 16 <= columns; j += 16) product_block<1>(left + i * rank, right, rank, columns, j, row, own, streams);
    if (j == columns) continue;
    const int num = static_cast<int>(columns - j);
    F sum = mul(set(left[i * rank]), load(right + j, num));
    for (int64_t k = 1; k < rank; ++k)
      sum = add(sum, mul(set(left[i * rank + k]), load(right + k * columns + j, num)));
    store(row + j, sum, num);
    if (own) store(own + j, finite_or_zero(sub(load(own + j, num), sum)), num);
  }
  if (streams) fence();
}
