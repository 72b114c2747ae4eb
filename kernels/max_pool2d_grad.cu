// Gradient of max_pool2d.cu in gather form: dx[h, w, c] = sum of dy[p, q, c] over the windows (p, q) whose
// first maximum in the order of their rows is (h, w); of windows with NaN it is the last of them.
//
// One thread VECTOR channels of one pixel of dx (16 bytes where rows are whole chunks, else 1), which looks
// through each window that it lies in; blockIdx.x walks columns and channels of one row, blockIdx.y rows,
// blockIdx.z images. Windows overlap in L1 and L2: device memory sees x, dy and dx once, and an element takes
// (KERNEL / stride)^2 * KERNEL^2 comparisons.
//
// Defines: STORAGE, VECTOR.
#include "common/divisor.cuh"
#include "common/elements.cuh"

struct Params {
    i32 height, width;
    i32 out_height, out_width;
    u32 vectors;  // of one pixel
    Divisor by_vectors;
    i32 kernel_h, kernel_w;
    i32 stride_h, stride_w;
    i32 pad_h, pad_w;
};

// Windows that a place along an axis lies in: from `begin` up to `end`.
struct Windows {
    i32 begin, end;

    __device__ inline Windows(i32 at, i32 kernel, i32 stride, i32 pad, i32 count)
        : begin(at + pad < kernel ? 0 : (at + pad - kernel) / stride + 1),
          end(min((at + pad) / stride + 1, count)) {}
};

extern "C" __global__ void max_pool2d_grad(const storage_t* __restrict__ x, const storage_t* __restrict__ dy,
                                           storage_t* __restrict__ dx, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = i / p.by_vectors, vector = i - column * p.vectors;
    if (column >= u32(p.width)) return;
    const i32 h = i32(blockIdx.y), w = i32(column);
    const u32 pixel = p.vectors * VECTOR;
    x += u64(blockIdx.z) * p.height * p.width * pixel + vector * VECTOR;
    dy += u64(blockIdx.z) * p.out_height * p.out_width * pixel + vector * VECTOR;
    const Windows rows(h, p.kernel_h, p.stride_h, p.pad_h, p.out_height);
    const Windows columns(w, p.kernel_w, p.stride_w, p.pad_w, p.out_width);
    float sum[VECTOR] = {};
    for (i32 row = rows.begin; row < rows.end; ++row) {
        const i32 top = max(row * p.stride_h - p.pad_h, 0);
        const i32 bottom = min(row * p.stride_h - p.pad_h + p.kernel_h, p.height);
        for (i32 q = columns.begin; q < columns.end; ++q) {
            const i32 left = max(q * p.stride_w - p.pad_w, 0);
            const i32 right = min(q * p.stride_w - p.pad_w + p.kernel_w, p.width);
            float best[VECTOR];
            // Whether the best so far is this thread's own pixel.
            bool own[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                best[v] = __uint_as_float(0xff800000u);
                own[v] = h == top && w == left;
            }
            for (i32 y = top; y < bottom; ++y) {
                for (i32 at = left; at < right; ++at) {
                    float value[VECTOR];
                    load_elements(x + u32(y * p.width + at) * pixel, value);
                    const bool here = y == h && at == w;
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) {
                        const bool better = value[v] > best[v] || value[v] != value[v];
                        best[v] = better ? value[v] : best[v];
                        own[v] = better ? here : own[v];
                    }
                }
            }
            float grad[VECTOR];
            load_elements(dy + u32(row * p.out_width + q) * pixel, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += own[v] ? grad[v] : 0.0f;
        }
    }
    const u64 at = (u64(blockIdx.z) * p.height + blockIdx.y) * p.width + column;
    store_elements(dx + at * pixel + vector * VECTOR, sum);
}
