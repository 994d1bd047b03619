// A list whose memory is in tensors, so that the taken elements need not be copied into tensors.
#pragma once

#include "../tensor_checks.h"
#include "base.h"

namespace sage::cpu {

class TensorList : public List {
 public:
  explicit TensorList(const Tensor& beside) : beside_(beside) {}

  std::tuple<Tensor, Tensor> tensors() {
    reserve(1);
    return {front(*value_, size), front(*index_, size)};
  }

 private:
  void grow(int64_t n) override {
    room = std::max(n, room + room / 2);
    Tensor value = empty<float>(room, beside_), index = empty<int32_t>(room, beside_);
    if (size > 0) {
      std::memcpy(value.mutable_data_ptr(), values, size * sizeof(float));
      std::memcpy(index.mutable_data_ptr(), indices, size * sizeof(int32_t));
    }
    values = data<float>(value);
    indices = data<int32_t>(index);
    value_ = value;
    index_ = index;
  }

  const Tensor& beside_;
  std::optional<Tensor> value_, index_;
};

}  // namespace sage::cpu
