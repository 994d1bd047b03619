// What the kernels share, in terms of the lanes. Each lanes_*.h includes it once.

inline F load_some(const float* x, int64_t num) { return num >= 16 ? load(x) : load(x, static_cast<int>(num)); }

inline void store_some(float* x, F f, int64_t num) {
  if (num >= 16)
    store(x, f);
  else
    store(x, f, static_cast<int>(num));
}

inline F finite_or_zero(F x) {
  const M is_finite = is_lessi(band(bits(x), seti(kMagnitude)), seti(0x7f800000u));
  return select(is_finite, x, set(0));
}

// The numbers of the groups that sixteen elements, or `num` at the end, belong to.
inline F of_groups(const float* numbers, Cursor cursor, int64_t i, int64_t num) {
  num = std::min<int64_t>(16, num);
  const int64_t group = cursor.group_at(i), left = cursor.stop() - i;
  if (left >= num) return set(numbers[group]);
  if (Cursor(cursor).group_at(i + num - 1) == group + 1)
    return select(mask_of((1u << left) - 1), set(numbers[group]), set(numbers[group + 1]));
  float each[16] = {};
  for (int64_t l = 0; l < num; ++l) each[l] = numbers[cursor.group_at(i + l)];
  return load(each);
}
