// y[b, p, q, c] = max over the window of x[b, p * stride_h - pad_h + i, q * stride_w - pad_w + j, c], NHWC.
//
// Pixels outside the map do not count: coordinates are clamped to the map, which only repeats a pixel of the
// window, because no window lies wholly outside (padding is at most half a window). So all loads of a window
// are independent and in flight together. NaN wins.
// One thread VECTOR channels of one output pixel (16 bytes where rows are whole chunks, else 1); blockIdx.x
// walks columns and channels of one output row, blockIdx.y rows, blockIdx.z images. Neighbouring windows
// overlap in L1 and L2, so device memory sees x and y once: (x + y) * sizeof(storage_t) bytes, KERNEL_H *
// KERNEL_W comparisons an output.
//
// Defines: STORAGE, VECTOR, KERNEL_H, KERNEL_W.
#include "common/activation.cuh"
#include "common/divisor.cuh"
#include "common/elements.cuh"

struct Params {
    u32 height, width;
    u32 out_height, out_width;
    u32 vectors;  // of one pixel
    Divisor by_vectors;
    i32 stride_h, stride_w;
    i32 pad_h, pad_w;
};

// The larger elements of two words, one or two of them; NaN if one is. No rounding, so no detour through
// floats.
__device__ inline u32 larger(u32 a, u32 b, float) {
    return __float_as_uint(maximum(__uint_as_float(a), __uint_as_float(b)));
}
__device__ inline u32 larger(u32 a, u32 b, f16) {
    u32 y;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ inline u32 larger(u32 a, u32 b, bf16) {
    u32 y;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

#if VECTOR == 1
typedef float value_t;
__device__ inline value_t load(const storage_t* p) { return to_f32(*p); }
__device__ inline value_t larger(value_t a, value_t b) { return maximum(a, b); }
__device__ inline void store(storage_t* p, value_t x) { *p = from_f32<storage_t>(x); }
#else
typedef Chunk value_t;
static_assert(VECTOR == Lanes<storage_t>::count, "one chunk");
__device__ inline value_t load(const storage_t* p) { return load_chunk(p); }
__device__ inline value_t larger(const value_t& a, const value_t& b) {
    value_t y;
#pragma unroll
    for (int i = 0; i < 4; ++i) y.word[i] = larger(a.word[i], b.word[i], storage_t{});
    return y;
}
__device__ inline void store(storage_t* p, const value_t& x) { store_global_chunk(p, x); }
#endif

extern "C" __global__ void max_pool2d(const storage_t* __restrict__ x, storage_t* __restrict__ y,
                                      const Params p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = at / p.by_vectors, vector = at - column * p.vectors, row = blockIdx.y;
    if (column >= p.out_width) return;
    const u32 pixel = p.vectors * VECTOR;
    const storage_t* image = x + u64(blockIdx.z) * p.height * p.width * pixel + vector * VECTOR;
    value_t best;
#pragma unroll
    for (int tap = 0; tap < KERNEL_H * KERNEL_W; ++tap) {
        const i32 source_row =
            min(max(i32(row) * p.stride_h - p.pad_h + tap / KERNEL_W, 0), i32(p.height) - 1);
        const i32 source_column =
            min(max(i32(column) * p.stride_w - p.pad_w + tap % KERNEL_W, 0), i32(p.width) - 1);
        const value_t value = load(image + (u32(source_row) * p.width + u32(source_column)) * pixel);
        best = tap == 0 ? value : larger(best, value);
    }
    storage_t* out = y + ((u64(blockIdx.z) * p.out_height + row) * p.out_width + column) * pixel;
    store(out + vector * VECTOR, best);
}
