// Where the elements of an implicit matrix lie: row m is output pixel (b, p, q), column k = (r * S + s) * C +
// c is input channel c under filter tap (r, s), and the element is x[b, p * stride - padding + r * dilation,
// .., c], or zero outside x.
//
// An element's place is the sum of a part of the row and a part of the column, and it lies inside the map if
// the tap's row and column both do. Both parts and both sets of taps (16 bits each) are kept in registers,
// and moving along k adds and shifts: the main loop has no division and no comparison with the map's borders.
//
// Defines: FILTER_H, FILTER_W (R and S, at most 16 each).
#pragma once
#include "conv/corner.cuh"

struct Params {
    u32 pixels;         // rows of the product: B * P * Q
    u32 filters;        // its columns: K
    u32 depth;          // its reduction: R * S * C
    u32 pitch;          // elements of a row of the packed filter: the depth rounded up to a chunk
    u32 height, width;  // of x
    u32 channels;       // of x
    u32 out_height, out_width;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    // What the offset gains from the last channel of a tap to the first one of the next tap of the row.
    i32 next_column;
    i32 next_row;       // what it gains besides at the end of a row of taps
    u32 tiles_n;        // tiles along the filters
    u32 slice;          // steps along k of one split
    Divisor by_out_height, by_out_width, by_channels, by_tiles_n;
};

// The part of a row: its element offset, and a bit for each tap column (from bit 0) and tap row (from bit 16)
// inside the map.
struct Window {
    i32 offset;
    u32 inside;
};

template <u32 taps> __device__ inline u32 taps_inside(i32 first, i32 dilation, u32 size) {
    u32 bits = 0;
#pragma unroll
    for (u32 t = 0; t < taps; ++t, first += dilation) bits |= u32(first) < size ? 1u << t : 0;
    return bits;
}

__device__ inline Window window_of(const Params& p, u32 pixel) {
    const Corner first(p, pixel);
    const u32 columns = taps_inside<FILTER_W>(first.w, p.dilation_w, p.width);
    const u32 rows = taps_inside<FILTER_H>(first.h, p.dilation_h, p.height);
    const i32 row = i32(first.image * p.height) + first.h;
    const i32 offset = (row * i32(p.width) + first.w) * i32(p.channels);
    return Window{offset, pixel < p.pixels ? columns | rows << 16 : 0};
}

// Moves a channel on by `step`; `enter` is called for each tap that this enters. `once`: a step is at most
// the channels, so that it enters one at most.
template <bool once, typename Enter>
__device__ inline void move_channel(const Params& p, u32& channel, u32 step, Enter enter) {
    const auto next = [&] {
        channel -= p.channels;
        enter();
    };
    channel += step;
    if (once) {
        if (channel >= p.channels) next();
    } else {
        while (channel >= p.channels) next();
    }
}

// The part of a column, moving along k.
struct Position {
    u32 k, channel;
    i32 offset;
    u32 column_bit, row_bit;

    __device__ inline Position(const Params& p, u32 start) : k(start) {
        const u32 tap = start / p.by_channels, r = tap / FILTER_W, s = tap % FILTER_W;
        channel = start - tap * p.channels;
        offset =
            (i32(r) * p.dilation_h * i32(p.width) + i32(s) * p.dilation_w) * i32(p.channels) + i32(channel);
        column_bit = 1u << s;
        row_bit = r < 16 ? 0x10000u << r : 0;
    }

    template <bool once> __device__ inline void advance(const Params& p, u32 step) {
        k += step;
        offset += i32(step);
        move_channel<once>(p, channel, step, [&] { next_tap(p); });
    }

    // False beyond the reduction's end, and where the tap lies outside the map.
    __device__ inline bool inside(const Params& p, const Window& window) const {
        const u32 tap = column_bit | row_bit;
        return k < p.depth && (window.inside & tap) == tap;
    }

private:
    __device__ inline void next_tap(const Params& p) {
        offset += p.next_column;
        column_bit <<= 1;
        if (column_bit >> FILTER_W) {
            column_bit = 1;
            row_bit <<= 1;
            offset += p.next_row;
        }
    }
};
