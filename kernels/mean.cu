// y[i] = (x0[i] + x1[i] + ..) / n: the mean of `operands` values of one shape, added in their order.
//
// One thread VECTOR neighbouring elements: 16 bytes where their number is whole chunks, else 1. Every byte
// moves once; n FLOPs an element.
//
// Defines: STORAGE, VECTOR.
#include "common/elements.cuh"

struct Params {
    u32 vectors;
    u32 operands;
};

extern "C" __global__ void mean(const storage_t* const* __restrict__ x, storage_t* __restrict__ y,
                                const Params p) {
    const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
    if (vector >= p.vectors) return;
    float total[VECTOR];
    load_elements(x[0] + u64(vector) * VECTOR, total);
    for (u32 operand = 1; operand < p.operands; ++operand) {
        float value[VECTOR];
        load_elements(x[operand] + u64(vector) * VECTOR, value);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) total[i] += value[i];
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) total[i] = __fdiv_rn(total[i], float(p.operands));
    store_elements(y + u64(vector) * VECTOR, total);
}
