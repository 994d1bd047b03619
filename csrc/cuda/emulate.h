// Emulates the part of CUDA that the kernels use on one CPU thread, so that the same kernels run without a GPU.
//
// Blocks run one after another. Each thread of a block is a fiber, which runs until it reaches a barrier or a warp
// operation; the fibers continue when all participants have arrived. They switch by _longjmp, since swapcontext makes two
// system calls: compile without _FORTIFY_SOURCE, which forbids it. A barrier that some threads never reach is an error. The emulation cannot show races between blocks, effects of memory order, or timing.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
// Blocks never overlap in time, so shared memory can be a static variable.
#define __shared__ static

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace emulate {

struct Dim3 {
  unsigned x = 1;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

enum class State { running, at_barrier, at_warp, done };

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it waits
  bool begun = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::running;
  uint32_t posted = 0, seen[kWarp] = {};
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t unused;
  jmp_buf scheduler;
  unsigned current = 0;
  std::function<void()> kernel;
};

inline Block* block = nullptr;
inline Dim3 thread_index, block_index;

inline void die(const char* why) {
  std::fprintf(stderr, "emulated block: %s\n", why);
  std::abort();
}

inline void wait(State state) {
  Fiber& fiber = block->fibers[block->current];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(block->scheduler, 1);
}

inline void entry() {
  block->kernel();
  wait(State::done);
}

// Every lane posts a value and receives the values of all lanes.
inline const uint32_t* exchange(unsigned mask, uint32_t value) {
  if (mask != 0xffffffffu) die("only whole warps are emulated");
  Fiber& fiber = block->fibers[block->current];
  fiber.posted = value;
  wait(State::at_warp);
  return fiber.seen;
}

// Runs a fiber until it waits.
[[gnu::noinline]] inline void resume(Fiber& fiber) {
  if (_setjmp(block->scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  swapcontext(&block->unused, &fiber.context);
}

// Runs a warp until all of its threads are done or wait for other warps. Warps then diverge as far as possible, so that
// a missing barrier has an effect.
inline void run_warp(unsigned first) {
  std::vector<Fiber>& fibers = block->fibers;
  for (bool met = true; met;) {
    for (block->current = first; block->current < first + kWarp; ++block->current) {
      if (fibers[block->current].state != State::running) continue;
      thread_index.x = block->current;
      resume(fibers[block->current]);
    }
    for (unsigned lane = first; lane < first + kWarp; ++lane) met = met && fibers[lane].state == State::at_warp;
    if (!met) continue;
    for (unsigned lane = first; lane < first + kWarp; ++lane) {
      for (unsigned other = 0; other < kWarp; ++other) fibers[lane].seen[other] = fibers[first + other].posted;
      fibers[lane].state = State::running;
    }
  }
}

// Releases the barrier if all threads have reached it and returns true; returns false if all threads are done.
inline bool release() {
  size_t waiting = 0, done = 0;
  for (const Fiber& fiber : block->fibers) {
    waiting += fiber.state == State::at_barrier;
    done += fiber.state == State::done;
  }
  if (done == block->fibers.size()) return false;
  if (waiting < block->fibers.size()) die("some threads wait for others that never come");
  for (Fiber& fiber : block->fibers) fiber.state = State::running;
  return true;
}

inline int64_t launches = 0;

// The warp that runs ahead of the others alternates between launches.
inline void launch(unsigned blocks, unsigned threads, std::function<void()> kernel) {
  const bool last_first = ++launches % 2;
  if (threads % kWarp != 0) die("a block is to be of whole warps");
  for (block_index.x = 0; block_index.x < blocks; ++block_index.x) {
    static Block here;  // so that stacks are allocated once
    if (here.fibers.size() != threads) here.fibers = std::vector<Fiber>(threads);
    here.kernel = kernel;
    block = &here;
    for (Fiber& fiber : here.fibers) {
      fiber.state = State::running;
      fiber.begun = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, entry, 0);
    }
    do {
      for (unsigned warp = 0; warp < threads; warp += kWarp) run_warp(last_first ? threads - kWarp - warp : warp);
    } while (release());
  }
  block = nullptr;
}

}  // namespace emulate

#define threadIdx (emulate::thread_index)
#define blockIdx (emulate::block_index)

inline void __syncthreads() { emulate::wait(emulate::State::at_barrier); }

inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint32_t* all = emulate::exchange(mask, predicate != 0);
  unsigned ballot = 0;
  for (int lane = 0; lane < emulate::kWarp; ++lane) ballot |= all[lane] << lane;
  return ballot;
}

inline uint32_t __shfl_sync(unsigned mask, uint32_t value, int lane) { return emulate::exchange(mask, value)[lane]; }

// Every lane receives the value, of 4 or 8 bytes, of the lane that `from` chooses for it.
template <class T, class From>
T shuffled(unsigned mask, T value, const From& from) {
  constexpr int kWords = sizeof(T) / 4;
  uint32_t words[kWords];
  std::memcpy(words, &value, sizeof value);
  const unsigned lane = threadIdx.x % emulate::kWarp, other = from(lane);
  for (uint32_t& word : words) word = emulate::exchange(mask, word)[other < emulate::kWarp ? other : lane];
  std::memcpy(&value, words, sizeof value);
  return value;
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  return shuffled(mask, value, [=](unsigned lane) { return lane - delta; });
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  return shuffled(mask, value, [=](unsigned lane) { return lane + delta; });
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned distance) {
  return shuffled(mask, value, [=](unsigned lane) { return lane ^ distance; });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline uint32_t __brev(uint32_t bits) {
  uint32_t reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (bits >> bit & 1) << (31 - bit);
  return reversed;
}
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll(static_cast<unsigned long long>(bits)) : 64; }

template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}

template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = before > value ? before : value;
  return before;
}

template <class T>
T atomicMin(T* at, T value) {
  const T before = *at;
  *at = before < value ? before : value;
  return before;
}

template <class T>
T atomicOr(T* at, T value) {
  const T before = *at;
  *at |= value;
  return before;
}
