// Statistics of all groups of a vector on a GPU, in a fixed number of launches.
#include "sums.cuh"

namespace sage::cuda {

namespace {

// Words that a kernel's argument carries to the device: no copy, and nothing on the host that must outlive the call.
constexpr int kCarried = 960;
struct Carried {
  int32_t words[kCarried];
};

__global__ void upload_kernel(Carried carried, int32_t num, int32_t* out) {
  for (int32_t i = threadIdx.x; i < num; i += kThreads) out[i] = carried.words[i];
}

struct WriteRows {
  double* rows;
  int32_t num_groups;

  __device__ void operator()(int32_t g, const Statistic& found) const {
    float largest;
    memcpy(&largest, &found.largest, sizeof largest);
    rows[g] = found.sum;
    rows[num_groups + g] = found.other;
    rows[2 * num_groups + g] = largest;
    rows[3 * num_groups + g] = found.below;
  }
};

}  // namespace

void upload(const std::vector<int32_t>& words, int32_t* out, Stream stream) {
  for (size_t i = 0; i < words.size(); i += kCarried) {
    Carried carried{};
    const int32_t num = static_cast<int32_t>(words.size() - i < kCarried ? words.size() - i : kCarried);
    memcpy(carried.words, words.data() + i, num * sizeof(int32_t));
    SAGE_LAUNCH(upload_kernel, 1, stream, carried, num, out + i);
  }
}

void statistics(Kind kind, const Cut& cut, float* signal, const float* grad, Statistic* pieces, double* rows,
                Stream stream) {
  const WriteRows write{rows, cut.num_groups};
  if (kind == Kind::absolute) add_buckets<Kind::absolute>(cut, signal, grad, pieces, write, stream);
  if (kind == Kind::sides) add_buckets<Kind::sides>(cut, signal, grad, pieces, write, stream);
  if (kind == Kind::squares) add_buckets<Kind::squares>(cut, signal, grad, pieces, write, stream);
  if (kind == Kind::largest) add_buckets<Kind::largest>(cut, signal, grad, pieces, write, stream);
}

}  // namespace sage::cuda
