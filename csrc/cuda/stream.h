// Access to torch's current device and stream for kernel launches.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#define SAGE_CUDA_BINDING
#include "../tensor_checks.h"
#include "kernels.h"

namespace sage::cuda {

// Makes the tensor's device the current one during its lifetime, and holds torch's current stream on this device.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  ~OnDevice() noexcept(false) {
    if (!std::uncaught_exceptions()) STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Waits for the device and copies what it has computed.
inline void copy_to_host(void* out, const void* in, size_t bytes, Stream stream) {
  STD_CUDA_CHECK(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
}

// Returns a new vector of n zeros.
template <class T>
Tensor zeros(int64_t n, const Tensor& beside, Stream stream) {
  Tensor made = empty<T>(n, beside);
  if (n > 0) STD_CUDA_CHECK(cudaMemsetAsync(made.mutable_data_ptr(), 0, static_cast<size_t>(n) * sizeof(T), stream));
  return made;
}

// Returns a copy of the first n elements.
template <class T>
Tensor copied(const Tensor& x, int64_t n, Stream stream) {
  Tensor made = empty<T>(n, x);
  if (n > 0)
    STD_CUDA_CHECK(cudaMemcpyAsync(made.mutable_data_ptr(), x.const_data_ptr(), static_cast<size_t>(n) * sizeof(T),
                                   cudaMemcpyDeviceToDevice, stream));
  return made;
}

}  // namespace sage::cuda
