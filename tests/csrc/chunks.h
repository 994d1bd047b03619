// Tests of the largest elements of chunks, for kernels.cpp.
#pragma once

#include "../../csrc/cpu/chunks.h"
#include "drawn.h"

inline void test_chunks(sage::cpu::Isa isa, const sage::cpu::Team& team, int64_t n) {
  const Floats x = draw(n);
  const auto [table, num] = draw_chunks(n);
  const auto num_chunks = static_cast<int64_t>(table.size() / 4);
  Floats values(num);
  Ints found(num, -2);
  const auto* chunks = reinterpret_cast<const sage::cpu::Chunk*>(table.data());
  largest_in_chunks(isa, team, {x.data(), chunks, num_chunks, num, values.data(), found.data()});
  const auto [expected, at] = largest_of_each(x, table, num, sage::cpu::magnitude);
  expect(found == at, "largest of chunks: positions");
  expect(same(values, expected), "largest of chunks: values");
}
