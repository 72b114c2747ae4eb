// y[i] = a[i] + b[i % period] or a[i] * b[i % period], over `count` elements.
//
// `b` is repeated along leading axes of size 1; equal shapes have period == count. A_TYPE and B_TYPE may be
// f32 where y is a 16-bit type: constants.
// One thread VECTOR neighbouring elements: 16 bytes of y where count and period are whole chunks, else 1.
// Each byte of a and y moves once: count * (sizeof(a) + sizeof(b) + sizeof(y)) bytes, 1 FLOP an element.
//
// Defines: STORAGE (of y), A_TYPE, B_TYPE, KIND, VECTOR.
#include "common/elements.cuh"

#define ADD 0
#define MUL 1

struct Params {
    u32 vectors;
    u32 period;
};

extern "C" __global__ void binary(const Storage<A_TYPE>::type* __restrict__ a,
                                  const Storage<B_TYPE>::type* __restrict__ b, storage_t* __restrict__ y,
                                  const Params p) {
    const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
    if (vector >= p.vectors) return;
    const u32 repeated = p.period == p.vectors ? vector : vector % p.period;
    float left[VECTOR], right[VECTOR];
    load_elements(a + u64(vector) * VECTOR, left);
    load_elements(b + u64(repeated) * VECTOR, right);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) left[i] = KIND == ADD ? left[i] + right[i] : left[i] * right[i];
    store_elements(y + u64(vector) * VECTOR, left);
}
