// Gradient of a convolution's map, in gather form, of any geometry and any number of groups:
//
//   dx[b, h, w, c] = sum over the taps (r, s) and filters k of the group of
//                    dy[b, (h + padding - r * dilation) / stride, .., k] * w[k, r, s, c]
//
// over the taps whose place in dy is whole and lies on it. x is [B, H, W, C], dy [B, P, Q, K]; w is read at
// k * filter_step + tap * tap_step + c' * channel_step, c' being the channel in its group.
//
// One thread an element of dx, or, where every group is one channel and one filter, a chunk of channels (16
// bytes) of a pixel: then w is [R * S, C], and dx costs R * S / stride^2 FMAs an element and memory bounds
// it. Else two loads an FMA: for shapes that no model of ours trains (strides of three and more, groups that
// are not depthwise), which implicit_gemm.cu does not take.
//
// Defines: STORAGE (of dy and w), RESULT (of dx), VECTOR.
#include "common/divisor.cuh"
#include "common/elements.cuh"

typedef Storage<RESULT>::type result_t;

struct Params {
    u32 count;  // threads that have work
    u32 height, width, vectors;  // of dx; vectors of VECTOR channels
    u32 out_height, out_width, filters;  // of dy
    u32 group_filters, group_channels;
    u32 filter_h, filter_w;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    u32 filter_step, tap_step, channel_step;
    Divisor by_vectors, by_width, by_height, by_stride_h, by_stride_w;
};

// The place in dy of what a tap moves by `at`, `size` if there is none.
__device__ inline u32 place(i32 at, i32 stride, const Divisor& by_stride, u32 size) {
    if (at < 0) return size;
    const u32 out = u32(at) / by_stride;
    return out * u32(stride) == u32(at) ? min(out, size) : size;
}

extern "C" __global__ void __launch_bounds__(256, 1)
    gather_grad(const storage_t* __restrict__ dy, const storage_t* __restrict__ w, result_t* __restrict__ dx,
                const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    const u32 pixel = i / p.by_vectors, channel = (i - pixel * p.vectors) * VECTOR;
    const u32 line = pixel / p.by_width, column = pixel - line * p.width;
    const u32 image = line / p.by_height, row = line - image * p.height;
    const u32 group = channel / p.group_channels, first = group * p.group_filters;
    const u32 own = channel - group * p.group_channels;
    const storage_t* filters = w + u64(first) * p.filter_step + own * p.channel_step;
    float sum[VECTOR] = {};
    for (u32 r = 0; r < p.filter_h; ++r) {
        const i32 above = i32(row) + p.padding_h - i32(r) * p.dilation_h;
        const u32 h = place(above, p.stride_h, p.by_stride_h, p.out_height);
        if (h == p.out_height) continue;
        for (u32 s = 0; s < p.filter_w; ++s) {
            const i32 before = i32(column) + p.padding_w - i32(s) * p.dilation_w;
            const u32 at = place(before, p.stride_w, p.by_stride_w, p.out_width);
            if (at == p.out_width) continue;
            const u64 out = (u64(image) * p.out_height + h) * p.out_width + at;
            const storage_t* grad = dy + out * p.filters + first;
            const storage_t* tap = filters + u64(r * p.filter_w + s) * p.tap_step;
            for (u32 k = 0; k < p.group_filters; ++k) {
                float g[VECTOR], f[VECTOR];
                load_elements(grad + k, g);
                load_elements(tap + u64(k) * p.filter_step, f);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) sum[v] = __fmaf_rn(g[v], f[v], sum[v]);
            }
        }
    }
    store_elements(dx + u64(i) * VECTOR, sum);
}
