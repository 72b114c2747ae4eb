// dx[i] = dy[i] * activation'(x[i]) over vectors of VECTOR elements of any shape.
//
// `read` is what the derivative is told from: y = activation(x), or x of GELU alone (src/ops/activation.rs).
// One thread a vector: 16 bytes of each operand where there are whole chunks. Every byte moves once, which is
// all it costs.
//
// Defines: STORAGE (of dx), READ_TYPE, DY_TYPE, ACTIVATION, VECTOR.
#include "common/activation.cuh"
#include "common/elements.cuh"

struct Params {
    u32 vectors;
};

extern "C" __global__ void activation_grad(const Storage<READ_TYPE>::type* __restrict__ read,
                                           const Storage<DY_TYPE>::type* __restrict__ dy,
                                           storage_t* __restrict__ dx, const Params p) {
    const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
    if (vector >= p.vectors) return;
    float x[VECTOR], g[VECTOR];
    load_elements(read + u64(vector) * VECTOR, x);
    load_elements(dy + u64(vector) * VECTOR, g);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) g[i] *= derivative<ACTIVATION>(x[i]);
    store_elements(dx + u64(vector) * VECTOR, g);
}
