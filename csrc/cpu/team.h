// Uses torch's threads as a kernel's team: torch.set_num_threads applies, and no second OpenMP runtime is loaded.
#pragma once

#include "../tensor_checks.h"
#include "base.h"

namespace sage::cpu {

inline Team torch_team() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t parts, const std::function<void(int64_t)>& work) {
            torch::stable::parallel_for(0, parts, 1, [&work](int64_t begin, int64_t end) {
              for (int64_t part = begin; part < end; ++part) work(part);
            });
          }};
}

}  // namespace sage::cpu
