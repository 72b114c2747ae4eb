// y[b, p, q, c] = max over the window of x[b, p * stride_h - pad_h + i, q * stride_w - pad_w + j, c], NHWC.
//
// Pixels outside the map do not count: coordinates are clamped to the map, which only repeats a pixel of the window, because
// no window lies wholly outside (padding is at most half a window). So all loads of a window are independent and in flight
// together. NaN wins.
// One thread VECTOR channels of one output pixel (16 bytes where rows are whole chunks, else 1); blockIdx.x walks
// columns and channels of one output row, blockIdx.y rows, blockIdx.z images. Neighbouring windows overlap in L1 and
// L2, so device memory sees x and y once: (x + y) * sizeof(storage_t) bytes, KERNEL_H * KERNEL_W comparisons an output.
//
// Defines: STORAGE, VECTOR, KERNEL_H, KERNEL_W.
#include "common/elements.cuh"

struct Params {
    u32 height, width;
    u32 out_height, out_width;
    u32 vectors;  // of one pixel
    i32 stride_h, stride_w;
    i32 pad_h, pad_w;
};

extern "C" __global__ void max_pool2d(const storage_t* __restrict__ x, storage_t* __restrict__ y, const Params p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = at / p.vectors;
    const u32 vector = at % p.vectors;
    if (column >= p.out_width) return;
    const u32 row = blockIdx.y;
    const u64 pixel = u64(p.vectors) * VECTOR;
    const storage_t* image = x + u64(blockIdx.z) * p.height * p.width * pixel + u64(vector) * VECTOR;
    float best[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) best[v] = -__int_as_float(0x7f800000);
#pragma unroll
    for (int i = 0; i < KERNEL_H; ++i) {
        const i32 source_row = min(max(i32(row) * p.stride_h - p.pad_h + i, 0), i32(p.height) - 1);
#pragma unroll
        for (int j = 0; j < KERNEL_W; ++j) {
            const i32 source_column = min(max(i32(column) * p.stride_w - p.pad_w + j, 0), i32(p.width) - 1);
            float value[VECTOR];
            load_elements(image + (u64(source_row) * p.width + source_column) * pixel, value);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                best[v] = value[v] > best[v] || value[v] != value[v] ? value[v] : best[v];
            }
        }
    }
    storage_t* out = y + ((u64(blockIdx.z) * p.out_height + row) * p.out_width + column) * pixel;
    store_elements(out + u64(vector) * VECTOR, best);
}
