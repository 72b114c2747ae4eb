// y[i] = activation(x[i]) over `count` elements of any shape.
//
// One thread an element, neighbours next to each other; both operands are read and written once:
// 2 * count * sizeof(storage_t) bytes, which is all it costs. Fused into its producer wherever there is one.
//
// Defines: STORAGE, ACTIVATION.
#include "common/storage.cuh"
#include "common/activation.cuh"

struct Params {
    u32 count;
};

extern "C" __global__ void activation(const storage_t* __restrict__ x, storage_t* __restrict__ y,
                                      const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) y[i] = from_f32<storage_t>(activate<ACTIVATION>(to_f32(x[i])));
}
