// y[n, p] = sum over c of x[n, p, c] * weight[k, c] + bias[k] with k = classes[n]: a 1x1 convolution of which
// a map needs one channel; zeros where there is no such class. x [N, pixels, C], y [N, pixels].
//
// A warp takes 32 neighbouring pixels of a map, one after the other: each lane VECTOR channels of it at a
// time (16 bytes where rows are whole chunks, else 1), whose products the warp adds up. Lane i keeps the sum
// of pixel i, so that 32 results are written at once. x is read once, which is nearly all of the traffic; 2
// FLOPs an element.
//
// Grid: maps, pixels / (32 WARPS). Block: 32 x WARPS threads. Defines: STORAGE, VECTOR.
#include "common/elements.cuh"
#include "common/reduce.cuh"

#define WARPS 8

struct Params {
    u32 pixels;   // of a map
    u32 vectors;  // of a pixel
    u32 classes;
};

extern "C" __global__ void __launch_bounds__(WARP * WARPS)
    class_conv(const storage_t* __restrict__ x, const float* __restrict__ weight,
               const float* __restrict__ bias, const i32* __restrict__ classes, storage_t* __restrict__ y,
               const Params p) {
    const u32 lane = threadIdx.x, map = blockIdx.x;
    const u32 first = (blockIdx.y * WARPS + threadIdx.y) * WARP;
    if (first >= p.pixels) return;
    const u32 pixels = min(p.pixels - first, u32(WARP));
    const u64 place = u64(map) * p.pixels + first;
    const u32 channels = p.vectors * VECTOR, of = u32(classes[map]);
    float own = 0.0f;
    if (of < p.classes) {
#pragma unroll 4
        for (u32 pixel = 0; pixel < pixels; ++pixel) {
            float sum = 0.0f;
            for (u32 vector = lane; vector < p.vectors; vector += WARP) {
                float value[VECTOR], by[VECTOR];
                load_elements(x + (place + pixel) * channels + vector * VECTOR, value);
                load_elements(weight + u64(of) * channels + vector * VECTOR, by);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) sum += value[i] * by[i];
            }
            sum = warp_sum(sum);
            if (lane == pixel) own = sum + bias[of];
        }
    }
    if (lane < pixels) y[place + lane] = from_f32<storage_t>(own);
}
