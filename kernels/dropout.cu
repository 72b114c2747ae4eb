// y[b, .., c] = x[b, .., c] * factors[b, c], or * factors[b] where a whole image is kept or dropped.
//
// One thread VECTOR neighbouring elements of image blockIdx.y: 16 bytes where rows are whole chunks, else 1.
// x and y move once, factors (f32) come from the caches.
//
// Defines: STORAGE, VECTOR.
#include "common/elements.cuh"

struct Params {
    u32 vectors;  // of an image
    u32 columns;  // vectors of an image's factors; 0: it has one factor
};

extern "C" __global__ void dropout(const storage_t* __restrict__ x, const float* __restrict__ factors,
                                   storage_t* __restrict__ y, const Params p) {
    const u32 vector = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    if (vector >= p.vectors) return;
    const u64 at = (u64(image) * p.vectors + vector) * VECTOR;
    float value[VECTOR], factor[VECTOR];
    load_elements(x + at, value);
    if (p.columns > 0) {
        load_elements(factors + (image * p.columns + vector % p.columns) * VECTOR, factor);
    } else {
        const float all = factors[image];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) factor[i] = all;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) value[i] *= factor[i];
    store_elements(y + at, value);
}
