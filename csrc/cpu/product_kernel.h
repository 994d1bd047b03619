// Products with thin matrices. Compiled for each instruction set by each_isa.h.

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

constexpr int kMostColumns = 4;  // of the thin matrix that are used at once
constexpr int64_t kRowsOfSum = 64;  // rows of a column that are summed before they are added to the others
constexpr int kRowsAtOnce = 8;

// The sum of the lanes, always in the same order: the halves, then their halves, and so on.
inline float sum_of_lanes(F f) {
  float x[16];
  store(x, f);
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) x[l] += x[l + half];
  return x[0];
}

// Adds elements [begin, end) of `grad`, unless null, to the matrix.
inline void add_to(float* x, const float* grad, int64_t begin, int64_t end) {
  if (!grad) return;
  for (int64_t i = begin; i < end; i += 16) {
    __builtin_prefetch(x + i + 512);
    __builtin_prefetch(grad + i + 512);
    store_some(x + i, add(load_some(x + i, end - i), load_some(grad + i, end - i)), end - i);
  }
}

// out[k·rows + i] for kRows rows from i on and kColumns columns k of the thin matrix.
template <int kRows, int kColumns>
inline void products_of_row(const float* x, const float* basis, int64_t rows, int64_t columns, int64_t i, float* out) {
  const int64_t ahead = kRows * std::min<int64_t>(columns, 1024);
  F sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kColumns; ++k) sums[r][k] = set(0);
  for (int64_t j = 0; j < columns; j += 16) {
    const int64_t num = columns - j;
    F a[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (i + r) * columns + j;
      __builtin_prefetch(x + at + ahead);
      a[r] = load_some(x + at, num);
    }
    for (int k = 0; k < kColumns; ++k) {
      const F b = load_some(basis + k * columns + j, num);
      for (int r = 0; r < kRows; ++r) sums[r][k] = add(sums[r][k], mul(a[r], b));
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kColumns; ++k) out[k * rows + i + r] = sum_of_lanes(sums[r][k]);
}

template <int kColumns>
inline void products_of_rows(const float* x, const float* basis, int64_t rows, int64_t columns, int64_t begin,
                             int64_t end, float* out) {
  constexpr int kRows = kColumns > 2 ? 2 : 4;
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows) products_of_row<kRows, kColumns>(x, basis, rows, columns, i, out);
  for (; i < end; ++i) products_of_row<1, kColumns>(x, basis, rows, columns, i, out);
}

// The products of rows [begin, end). Lane l of a sum has the elements l, l + 16, … of the row.
void products_of_rows(float* x, const float* grad, const float* basis, int64_t rows, int64_t columns, int64_t rank,
                      int64_t begin, int64_t end, float* out) {
  for (int64_t from = begin; from < end; from += kRowsAtOnce) {  // they stay in the cache
    const int64_t to = std::min(end, from + kRowsAtOnce);
    add_to(x, grad, from * columns, to * columns);
    for (int64_t k = 0; k < rank; k += kMostColumns) {
      const int64_t num = std::min<int64_t>(kMostColumns, rank - k);
      const float* q = basis + k * columns;
      float* at = out + k * rows;
      if (num == 1) products_of_rows<1>(x, q, rows, columns, from, to, at);
      if (num == 2) products_of_rows<2>(x, q, rows, columns, from, to, at);
      if (num == 3) products_of_rows<3>(x, q, rows, columns, from, to, at);
      if (num == 4) products_of_rows<4>(x, q, rows, columns, from, to, at);
    }
  }
}

// Adds to sums[k·columns + j] the products of kRows rows from i on with kColumns columns k of the thin matrix.
template <int kRows, int kColumns>
inline void add_rows(const float* x, const float* basis, int64_t rows, int64_t columns, int64_t i, int64_t begin,
                     int64_t end, float* sums) {
  for (int64_t j = begin; j < end; j += 16) {
    const int64_t num = end - j;
    F sum[kColumns];
    for (int k = 0; k < kColumns; ++k) sum[k] = load_some(sums + k * columns + j, num);
    for (int r = 0; r < kRows; ++r) {
      const F a = load_some(x + (i + r) * columns + j, num);
      for (int k = 0; k < kColumns; ++k) sum[k] = add(sum[k], mul(a, set(basis[k * rows + i + r])));
    }
    for (int k = 0; k < kColumns; ++k) store_some(sums + k * columns + j, sum[k], num);
  }
}

template <int kColumns>
inline void add_rows(const float* x, const float* basis, int64_t rows, int64_t columns, int64_t i, int64_t num,
                     int64_t begin, int64_t end, float* sums) {
  if (num == kRowsAtOnce) return add_rows<kRowsAtOnce, kColumns>(x, basis, rows, columns, i, begin, end, sums);
  for (int64_t r = 0; r < num; ++r) add_rows<1, kColumns>(x, basis, rows, columns, i + r, begin, end, sums);
}

// The products of columns [begin, end). kRowsOfSum rows after the other are summed in their order, and these sums too.
void products_of_columns(float* x, const float* grad, const float* basis, int64_t rows, int64_t columns, int64_t rank,
                         int64_t begin, int64_t end, float* sums, float* out) {
  for (int64_t k = 0; k < rank; ++k) std::fill(out + k * columns + begin, out + k * columns + end, 0.0f);
  for (int64_t from = 0; from < rows; from += kRowsOfSum) {
    const int64_t to = std::min(rows, from + kRowsOfSum);
    for (int64_t k = 0; k < rank; ++k) std::fill(sums + k * columns + begin, sums + k * columns + end, 0.0f);
    for (int64_t i = from; i < to; i += kRowsAtOnce) {
      const int64_t num = std::min<int64_t>(kRowsAtOnce, to - i);
      for (int64_t r = i; r < i + num; ++r) add_to(x, grad, r * columns + begin, r * columns + end);
      for (int64_t k = 0; k < rank; k += kMostColumns) {
        const int64_t left = std::min<int64_t>(kMostColumns, rank - k);
        const float* p = basis + k * rows;
        float* at = sums + k * columns;
        if (left == 1) add_rows<1>(x, p, rows, columns, i, num, begin, end, at);
        if (left == 2) add_rows<2>(x, p, rows, columns, i, num, begin, end, at);
        if (left == 3) add_rows<3>(x, p, rows, columns, i, num, begin, end, at);
        if (left == 4) add_rows<4>(x, p, rows, columns, i, num, begin, end, at);
      }
    }
    for (int64_t k = 0; k < rank; ++k)
      for (int64_t j = begin; j < end; j += 16) {
        float* at = out + k * columns + j;
        store_some(at, add(load_some(at, end - j), load_some(sums + k * columns + j, end - j)), end - j);
      }
  }
}
