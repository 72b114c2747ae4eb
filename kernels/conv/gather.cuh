// The matrix of windows as the gradient of a filter reads it: row = output pixel (b, p, q), column = (tap
// row, tap column, channel). A thread keeps its columns and meets ever new pixels, so that the tap is worked
// out once and the pixel at every element: the other way round than window.cuh.
#pragma once
#include "conv/corner.cuh"

struct Params {
    u32 pixels;           // of dy: B * P * Q
    u32 filters;          // K
    u32 columns;          // R * S * C'
    u32 height, width, channels;  // of x
    u32 out_height, out_width;
    u32 filter_h, filter_w;  // R and S
    u32 group_channels;   // C', C where there is one group
    u32 group_filters;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    u32 split;            // pixels of a block
    u32 tiles;            // tiles of filters
    Divisor by_out_height, by_out_width, by_group_channels, by_filter_w;
};

// A column: its tap, and its channel in the group.
struct Column {
    u32 r, s;
    u32 channel;

    __device__ inline Column(const Params& p, u32 column) {
        const u32 tap = column / p.by_group_channels;
        r = tap / p.by_filter_w;
        s = tap - r * p.filter_w;
        channel = column - tap * p.group_channels;
    }

    // Where in x the column has its element of row `pixel`; below 0 in the padding. x has below 2^31
    // elements.
    __device__ inline i32 place(const Params& p, u32 pixel) const {
        const Corner first(p, pixel);
        const u32 h = u32(first.h + i32(r) * p.dilation_h), w = u32(first.w + i32(s) * p.dilation_w);
        if (h >= p.height || w >= p.width) return -1;
        return i32(((first.image * p.height + h) * p.width + w) * p.channels + channel);
    }
};
