// What a convolution does with its tile besides writing it, chosen by
//
//   UPSAMPLED  the residual is a map of half the size, of which every pixel stands for four (the top-down
//              path of FPN)
//   SCATTERED  pixels of the result lie apart, in a larger map (a gradient of a stride)
//   MOMENTS    the moments of each group of channels come with the result: a warp's tile has PART_PIXELS
//              rows, which are one
//              part, and a chunk of channels is a group. moments[part][group].
//
// A lane of the writer sees the channels of one chunk, rows apart, so that a group's moments in a lane are
// those of all its values; the lanes of a column then put theirs together. The means are absolute: 16-bit
// values have no more digits than a float keeps of them.
#pragma once
#include "common/moments.cuh"
#include "conv/window.cuh"
#include "conv/writer.cuh"

// The moments of what a lane writes.
struct LaneMoments {
    float first = 0.0f, sum = 0.0f, squares = 0.0f, count = 0.0f;

    template <int N> __device__ inline void add(const float (&x)[N]) {
        if (count == 0.0f) first = x[0];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float d = x[i] - first;
            sum += d;
            squares += d * d;
        }
        count += float(N);
    }

    // Those of all lanes whose number has the same remainder by `columns`, a power of two.
    __device__ inline Moments join(u32 columns) const {
        const Moments own = moments_of(sum, squares, count, first);
        float total = count, weighted = count * own.mean;
        for (u32 distance = columns; distance < WARP; distance *= 2) {
            total += __shfl_xor_sync(FULL_MASK, total, distance);
            weighted += __shfl_xor_sync(FULL_MASK, weighted, distance);
        }
        const float mean = total == 0.0f ? 0.0f : __fdividef(weighted, total), d = own.mean - mean;
        float spread = own.m2 + count * d * d;
        for (u32 distance = columns; distance < WARP; distance *= 2)
            spread += __shfl_xor_sync(FULL_MASK, spread, distance);
        return Moments{mean, spread};
    }
};

// Where pixels of the result lie: from `first`, every `step`-th row and column of a map.
struct Scatter {
    u32 height, width;
    u32 first_h, first_w;
    u32 step_h, step_w;
    u32 taps;  // 0: no term reaches these pixels, which are zero
};

// For `Writer`.
struct FusedTail {
    const Params& p;
    Moments* moments;
#if SCATTERED
    const Scatter& to;
#endif

    // Row of y that row m of the result is.
    __device__ inline u32 row(u32 m) const {
#if SCATTERED
        const u32 line = m / p.by_out_width, image = line / p.by_out_height;
        const u32 h = to.first_h + (line - image * p.out_height) * to.step_h;
        return (image * to.height + h) * to.width + to.first_w + (m - line * p.out_width) * to.step_w;
#else
        return m;
#endif
    }

    // Row of the residual that row m of the result adds.
    __device__ inline u32 residual_row(u32 m) const {
#if UPSAMPLED
        // The rows of an image are even in number, so that halving counts over the whole batch.
        const u32 line = m / p.by_out_width, column = m - line * p.out_width;
        return line / 2 * (p.out_width / 2) + column / 2;
#else
        return m;
#endif
    }

#if MOMENTS
    typedef LaneMoments Lane;

    // `n`: the lane's first channel; `columns`: lanes that share a row.
    template <u32 tile_rows, int chunk>
    __device__ inline void finish(const Lane& sums, u32 first_row, u32 n, u32 lane, u32 columns) const {
        static_assert(tile_rows == PART_PIXELS, "a warp writes one part");
        const Moments all = sums.join(columns);
        if (lane < columns && first_row < p.pixels && n < p.filters)
            moments[u64(first_row / PART_PIXELS) * (p.filters / chunk) + n / chunk] = all;
    }
#else
    typedef NoMoments Lane;
    template <u32 tile_rows, int chunk> __device__ inline void finish(const Lane&, u32, u32, u32, u32) const {
    }
#endif
};
