// Common parts of the CPU kernels: magnitudes as bits, instruction set detection, threads, reused memory.
// These headers do not depend on torch, so that they compile in a second and run under sanitizers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define SAGE_X86 1
// For a plain loop: the compiler vectorizes it for each of these targets, and the loader chooses one of them.
#define SAGE_CLONES __attribute__((unused, target_clones("avx512f", "avx2", "default")))
#else
#define SAGE_X86 0
#define SAGE_CLONES __attribute__((unused))
#endif

namespace sage::cpu {

constexpr uint32_t kMagnitude = 0x7fffffffu;  // all of a float but its sign
constexpr uint32_t kNothing = 0x80000000u;    // above every magnitude, NaN's too

inline uint32_t magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & kMagnitude;
}

// Returns the smallest magnitude for which `not |x| < threshold` holds; 0 if the threshold is 0, negative or NaN.
inline uint32_t limit_of(float threshold) { return threshold > 0 ? magnitude(threshold) : 0; }

enum class Isa { scalar, avx2, avx512 };

#if SAGE_X86
// Whether the processor converts fp16; not every compiler's __builtin_cpu_supports can report this.
inline bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// Returns the best instruction set that this processor supports and the kernels implement.
inline Isa isa() {
#if SAGE_X86
  static const Isa found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                               ? Isa::avx512
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && has_f16c()
                               ? Isa::avx2
                               : Isa::scalar;
  return found;
#else
  return Isa::scalar;
#endif
}

// Threads that share work. The caller provides them: torch's threads in the extension, none in a test.
struct Team {
  int64_t threads = 1;
  std::function<void(int64_t parts, const std::function<void(int64_t part)>& work)> run;

  // Returns the number of parts for n elements, such that a part is large enough to justify waking a thread.
  int64_t parts(int64_t n) const { return std::max<int64_t>(1, std::min(threads, n / 65536)); }

  void each(int64_t parts, const std::function<void(int64_t part)>& work) const {
    if (parts == 1) return work(0);
    run(parts, work);
  }
};

// Returns the first element of part `i` of `parts`. It is a multiple of 64, so that parts share no cache line.
inline int64_t part_begin(int64_t n, int64_t parts, int64_t i) {
  return i == parts ? n : n / 64 * i / parts * 64;
}

// Memory that grows and is reused across calls: page faults of new memory cost more than the writes to it.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* data() const { return data_; }

  // Ensures room for n elements and keeps the contents.
  void reserve(int64_t n) {
    if (n <= room_) return;
    const int64_t room = std::max(n, room_ + room_ / 2);
    void* grown = std::realloc(data_, static_cast<size_t>(room) * sizeof(T));
    if (!grown) throw std::bad_alloc();
    data_ = static_cast<T*>(grown);
    room_ = room;
  }

 private:
  T* data_ = nullptr;
  int64_t room_ = 0;
};

// Elements taken from a vector, by ascending index. Derived classes own the memory.
struct List {
  float* values = nullptr;
  int32_t* indices = nullptr;
  int64_t size = 0, room = 0;

  void reserve(int64_t n) {
    if (n > room) grow(n);
  }

  virtual ~List() = default;

 private:
  virtual void grow(int64_t n) = 0;
};

class Kept : public List {
  Buffer<float> value_;
  Buffer<int32_t> index_;

  void grow(int64_t n) override {
    room = std::max(n, room + room / 2);
    value_.reserve(room);
    index_.reserve(room);
    values = value_.data();
    indices = index_.data();
  }
};

// Whether to write n elements past the caches, which saves reading the memory first: if they are longer than a cache.
inline bool may_stream(const void* out, int64_t n) {
  return n > int64_t{1} << 20 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

// Elements before the first whose address is a multiple of 64 bytes.
inline int64_t to_line(const float* out) {
  return static_cast<int64_t>((64 - reinterpret_cast<uintptr_t>(out) % 64) % 64 / sizeof *out);
}

}  // namespace sage::cpu
