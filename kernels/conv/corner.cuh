// Where an output pixel's window begins. `P`: the parameters of a kernel that walks output pixels, with the
// sizes of the result, strides, paddings and divisors of window.cuh or gather.cuh.
#pragma once
#include "common/divisor.cuh"

// Where the first tap of a pixel lies, which may be in the padding.
struct Corner {
    u32 image;
    i32 h, w;

    template <typename P> __device__ inline Corner(const P& p, u32 pixel) {
        const u32 line = pixel / p.by_out_width;
        image = line / p.by_out_height;
        h = i32(line - image * p.out_height) * p.stride_h - p.padding_h;
        w = i32(pixel - line * p.out_width) * p.stride_w - p.padding_w;
    }
};
