// Convolution of any geometry and any number of groups, the slow way:
//
//   y[b, p, q, k] = epilogue(sum over r, s, c of x[b, p * stride - padding + r * dilation, .., g * C' + c] *
//   w[k, r, s, c]),  g = k / K'
//
// with C' = C / groups channels and K' = K / groups filters a group. x is [B, H, W, C], w [K, R, S, C'], y
// [B, P, Q, K]. One thread an element of y, filters fastest, so that the lanes of a warp share a window. Two
// loads an FMA: for shapes that no model of ours has in its hot path (grouped, but not depthwise; filters of
// more than 16 taps a side).
//
// Defines: STORAGE, ACTIVATION.
#include "common/epilogue.cuh"

struct Params {
    u32 count;  // elements of y
    u32 filters, group_filters;
    u32 height, width, channels, group_channels;
    u32 out_height, out_width;
    u32 filter_h, filter_w;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
};

extern "C" __global__ void __launch_bounds__(256)
    direct(const storage_t* __restrict__ x, const storage_t* __restrict__ w, const float* __restrict__ bias,
           const storage_t* __restrict__ residual, storage_t* __restrict__ y, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    const u32 pixel = i / p.filters, filter = i - pixel * p.filters;
    const u32 line = pixel / p.out_width, image = line / p.out_height;
    const i32 first_h = i32(line - image * p.out_height) * p.stride_h - p.padding_h;
    const i32 first_w = i32(pixel - line * p.out_width) * p.stride_w - p.padding_w;
    const storage_t* taps = w + u64(filter) * p.filter_h * p.filter_w * p.group_channels;
    const u32 first_channel = filter / p.group_filters * p.group_channels;
    float sum = 0.0f;
    for (u32 r = 0; r < p.filter_h; ++r) {
        const i32 h = first_h + i32(r) * p.dilation_h;
        for (u32 s = 0; s < p.filter_w; ++s, taps += p.group_channels) {
            const i32 column = first_w + i32(s) * p.dilation_w;
            if (u32(h) >= p.height || u32(column) >= p.width) continue;
            const storage_t* channel =
                x + ((u64(image) * p.height + h) * p.width + column) * p.channels + first_channel;
            for (u32 c = 0; c < p.group_channels; ++c)
                sum = __fmaf_rn(to_f32(channel[c]), to_f32(taps[c]), sum);
        }
    }
    const Epilogue<storage_t> epilogue{bias, residual, y};
    epilogue.store<ACTIVATION>(sum, i, filter);
}
