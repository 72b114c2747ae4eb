// Windows of a map and their tokens (src/ops/window_attention.rs). Nothing is padded, rolled or cut up in
// memory: a token of a window is a pixel of the map, or lies in the padding.
// Defines: WINDOW (side of a window).
#pragma once
#include "common/storage.cuh"

#define TOKENS (WINDOW * WINDOW)
// Rows of the table of biases.
#define OFFSETS ((2 * WINDOW - 1) * (2 * WINDOW - 1))
#define PADDING 0xffffffffu

struct Params {
    u32 height, width, channels;      // of y
    u32 down, across;                 // windows of an image
    u32 shift;
    u32 offset_stride, head_stride;   // of the table of biases, in elements
    float scale;                      // 1 / sqrt(D)
    float mask;                       // added where the roll alone has brought two pixels together
};

// Of the gradients.
struct GradParams {
    Params map;
    u32 windows;  // of all images
    u32 share;    // windows of a block
};

// A window.
struct Place {
    u32 image, row, column;   // of windows
    u32 cut_row, cut_column;  // of the window: where its second part begins; WINDOW if it has but one

    __device__ inline Place(u32 image, u32 row, u32 column, const Params& p)
        : image(image), row(row), column(column) {
        cut_row = p.shift > 0 && row + 1 == p.down ? WINDOW - p.shift : WINDOW;
        cut_column = p.shift > 0 && column + 1 == p.across ? WINDOW - p.shift : WINDOW;
    }

    // The token's pixel, counted over all images, or PADDING.
    __device__ inline u32 pixel(u32 token, const Params& p) const {
        u32 y = row * WINDOW + token / WINDOW + p.shift, x = column * WINDOW + token % WINDOW + p.shift;
        if (y >= p.down * WINDOW) y -= p.down * WINDOW;
        if (x >= p.across * WINDOW) x -= p.across * WINDOW;
        return y < p.height && x < p.width ? (image * p.height + y) * p.width + x : PADDING;
    }

    // Whether tokens of the window come from both sides of the map.
    __device__ inline bool has_parts() const { return cut_row < WINDOW || cut_column < WINDOW; }

    // Which part of the window the token is in: pairs from two get the mask.
    __device__ inline u32 part(u32 token) const {
        return u32(token / WINDOW >= cut_row) * 2 + u32(token % WINDOW >= cut_column);
    }
};

// The pair's row in the table of biases is `query_offset` less `key_offset`.
__device__ inline u32 key_offset(u32 token) { return token + token / WINDOW * (WINDOW - 1); }
__device__ inline u32 query_offset(u32 token) { return key_offset(token) + 2 * WINDOW * (WINDOW - 1); }
