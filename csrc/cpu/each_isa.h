// Compiles one kernel file for each instruction set. Define SAGE_KERNEL as the file's name, then include this one:
//
//   #define SAGE_KERNEL "signs_kernel.h"
//   #include "each_isa.h"
//
// The file is written in terms of lanes_*.h: sixteen lanes, whatever the width of a register. Its functions are then in
// the namespaces scalar, avx2 and avx512; it includes nothing itself. SAGE_PEXT says whether these have pext and pdep.
#include "groups.h"
#include "halves.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own header: PR 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wunused-function"

#undef SAGE_PEXT
#define SAGE_PEXT 0  // g++ 12 does not set __BMI2__ by a pragma
namespace sage::cpu::scalar {
#include "lanes_scalar.h"
#include SAGE_KERNEL
}  // namespace sage::cpu::scalar

#if SAGE_X86
#undef SAGE_PEXT
#define SAGE_PEXT 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2,popcnt")
namespace sage::cpu::avx2 {
#include "lanes_avx2.h"
#include SAGE_KERNEL
}  // namespace sage::cpu::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,bmi2,popcnt")
namespace sage::cpu::avx512 {
#include "lanes_avx512.h"
#include SAGE_KERNEL
}  // namespace sage::cpu::avx512
#pragma GCC pop_options

// Calls the function of this instruction set: SAGE_CHOOSE(isa, name, arguments...).
#undef SAGE_CHOOSE
#define SAGE_CHOOSE(isa, name, ...)                              \
  ((isa) == Isa::avx512 ? ::sage::cpu::avx512::name(__VA_ARGS__) \
   : (isa) == Isa::avx2 ? ::sage::cpu::avx2::name(__VA_ARGS__)   \
                        : ::sage::cpu::scalar::name(__VA_ARGS__))
#else
#undef SAGE_CHOOSE
#define SAGE_CHOOSE(isa, name, ...) ::sage::cpu::scalar::name(__VA_ARGS__)
#endif

#pragma GCC diagnostic pop
#undef SAGE_KERNEL
