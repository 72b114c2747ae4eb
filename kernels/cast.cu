// y[i] = x[i] in another element type, over `count` elements: between the f32 of the host and the storage
// type.
//
// One thread an element; every byte is moved once.
//
// Defines: SOURCE, TARGET (numbers of common/storage.cuh).
#include "common/storage.cuh"

struct Params {
    u32 count;
};

extern "C" __global__ void cast(
    const Storage<SOURCE>::type* __restrict__ x, Storage<TARGET>::type* __restrict__ y, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) y[i] = from_f32<Storage<TARGET>::type>(to_f32(x[i]));
}
