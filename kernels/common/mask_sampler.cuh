// Mask probabilities at the size of the photo from mask logits, tile by tile; never as a full-resolution map.
//
//   logits [h8, w8] -x2-> [h4, w4] -sigmoid-> -x4-> padded input, cropped to the resized image -> photo
//
// All steps are bilinear with align_corners=False; those after the sigmoid are linear and separable. So a
// tile of TILE_W output columns first gets the probabilities it draws on (each once, in shared memory), then
// these rows at its own columns (`wide`), and an output pixel is a combination of four of them:
//
//   out[y, x] = v0 * (u0 * wide[q0, x] + u1 * wide[q1, x]) + v1 * (u2 * wide[q2, x] + u3 * wide[q3, x])
//
// The taps of columns have the same form. Each factor is its own two-tap step and no multiply-add is
// contracted: bit for bit what src/image/mask_resize.rs computes, for the reasons given there.
// A block has THREADS threads; thread t works on output column t % TILE_W.
#pragma once
#include "common/blend.cuh"
#include "common/exact_sigmoid.cuh"
#include "common/reduce.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)
#define TILE_W 64
#define ROW_STEP (THREADS / TILE_W)

// One direction of the chain of sizes. Scales are input / output of a step, rounded to f32.
struct Direction {
    i32 logits, stride4, padded, resized, original;
    float upsample_scale, pad_scale, photo_scale;
};

struct Sampler {
    Direction vertical, horizontal;
    i32 wide_rows, wide_columns;  // most stride-4 rows and columns under a tile
    i32 batch_rows;               // rows whose probabilities are held at a time
};

// The four taps of an output row or column among stride-4 ones, ascending. In shared memory it moves as three
// chunks.
struct alignas(16) Taps {
    i32 at[4];
    float inner[4];
    float outer[2];
};

// A range of stride-4 rows or columns, and the range of logits under it.
struct alignas(16) Span {
    i32 first, count;
    i32 logit_first, logit_count;
};

__device__ inline Blend upsampled(i32 q, const Direction& d) {
    return blend(q, d.logits, d.stride4, d.upsample_scale);
}

__device__ inline Taps taps(i32 at, const Direction& d, bool column) {
    const Blend outer = blend(at, d.resized, d.original, d.photo_scale);
    Blend low = blend(outer.low, d.stride4, d.padded, d.pad_scale);
    Blend high = blend(outer.high, d.stride4, d.padded, d.pad_scale);
    // The first two columns are copies of the first sample, so that no NaN enters them from the second.
    if (column && outer.low < 2) low.high = low.low;
    if (column && outer.high < 2) high.high = high.low;
    return Taps{{low.low, low.high, high.low, high.high},
                {low.low_weight, low.high_weight, high.low_weight, high.high_weight},
                {outer.low_weight, outer.high_weight}};
}

__device__ inline float combine(const Taps& t, float a, float b, float c, float d) {
    return mix(t.outer[0], mix(t.inner[0], a, t.inner[1], b), t.outer[1], mix(t.inner[2], c, t.inner[3], d));
}

// What output rows or columns `from` .. `to` (not included) draw on.
__device__ inline Span span(i32 from, i32 to, const Direction& d) {
    const i32 first = taps(from, d, false).at[0], last = taps(to - 1, d, false).at[3];
    const i32 logit_first = upsampled(first, d).low;
    return Span{first, last + 1 - first, logit_first, upsampled(last, d).high + 1 - logit_first};
}

// Tabulates the taps of a tile's stride-4 rows (as places in a mask of logits) and columns. The caller puts a
// barrier before their use.
__device__ inline void tabulate_rows(const Sampler& s, const Span& rows, Blend* row_table) {
    for (i32 r = threadIdx.x; r < rows.count; r += THREADS) {
        Blend v = upsampled(rows.first + r, s.vertical);
        v.low *= s.horizontal.logits;
        v.high *= s.horizontal.logits;
        row_table[r] = v;
    }
}
__device__ inline void tabulate_columns(const Sampler& s, const Span& columns, Blend* column_table) {
    for (i32 c = threadIdx.x; c < columns.count; c += THREADS) {
        column_table[c] = upsampled(columns.first + c, s.horizontal);
    }
}

template <typename T>
__device__ inline float mask_probability(const T* logits, const Blend& row, const Blend& column) {
    const float u = mix(column.low_weight, to_f32(logits[row.low + column.low]), column.high_weight,
                        to_f32(logits[row.low + column.high]));
    const float l = mix(column.low_weight, to_f32(logits[row.high + column.low]), column.high_weight,
                        to_f32(logits[row.high + column.high]));
    return exact_sigmoid(mix(row.low_weight, u, row.high_weight, l));
}

// Fills wide[rows.count][TILE_W] for one mask, given the tables of the tile. `column` are the taps of the
// thread's own output column. Ends with a barrier; what was read of `wide` before the call may be overwritten
// only because every thread passes the first barrier.
template <typename T>
__device__ inline void prepare_tile(const T* logits, const Sampler& s, const Span& rows, const Span& columns,
                                    const Taps& column, const Blend* row_table, const Blend* column_table,
                                    float* probability, float* wide) {
    const i32 thread = threadIdx.x;
    for (i32 base = 0; base < rows.count; base += s.batch_rows) {
        const i32 count = min(s.batch_rows, rows.count - base);
        for (i32 r = thread / WARP; r < count; r += WARPS) {
            const Blend v = row_table[base + r];
            for (i32 c = thread % WARP; c < columns.count; c += WARP) {
                probability[r * columns.count + c] = mask_probability(logits, v, column_table[c]);
            }
        }
        __syncthreads();
        for (i32 r = thread / TILE_W; r < count; r += ROW_STEP) {
            const float* row = probability + r * columns.count - columns.first;
            wide[(base + r) * TILE_W + thread % TILE_W] =
                combine(column, row[column.at[0]], row[column.at[1]], row[column.at[2]], row[column.at[3]]);
        }
        __syncthreads();
    }
}

// Taps of an output row as places in `wide`, which holds rows from `first`.
__device__ inline Taps row_taps(i32 y, const Direction& vertical, i32 first) {
    Taps t = taps(y, vertical, false);
    for (int i = 0; i < 4; ++i) t.at[i] = (t.at[i] - first) * TILE_W;
    return t;
}

// Probability at an output row with these taps, in the column where `column` points into `wide`.
__device__ inline float tile_value(const Taps& t, const float* column) {
    return combine(t, column[t.at[0]], column[t.at[1]], column[t.at[2]], column[t.at[3]]);
}
