// Gradients of a deformable convolution's map and offsets from those of its samples, grads [B, P, Q, R * S,
// C], rounded to what x is stored as: what a sample's gradient is to the four pixels that it blends
// (deformed.cuh), and to its place.
//
//   dx[b, h, w, c] = sum over the samples that blend the pixel of grad * share
//   doffsets[.., axis] = sum over channels of grad * (slope of the sample along the axis)
//
// Which samples blend a pixel is only known from the offsets: each pixel gets a list of them, whose length is
// counted first, and adds up theirs. Nothing but counts and places is taken by atomics. The order of a list
// is that of chance until it is sorted; sums are f32, in the order of the samples.
//
//   samples  doffsets, and how many samples blend each pixel
//   reserve  a thread a pixel: where its list lies, behind those of others that came before by chance
//   place    a thread a sample: puts it on the lists of its pixels
//   sort     SORTERS lanes a pixel: each entry goes where as many lie before it as come before it
//   gather   LANES lanes a pixel, 16 bytes of its channels a lane and turn: dx
//
// `counts` and `taken` begin as zeros (`clear`). Each gradient is read five times, once with the four pixels
// of x and four times through L2 by these pixels; 18 FLOPs a channel of a sample.
//
// Defines: STORAGE (of x, dx and grads), VECTOR (16 bytes of x, or 1).
#include "common/async_copy.cuh"
#include "common/elements.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "conv/deformed.cuh"

#define THREADS 256
#define LANES 16
#define SORTERS 8

struct Params {
    u32 samples;     // B * P * Q * R * S, below 2^31 / C
    u32 map_pixels;  // B * H * W
    u32 height, width, channels;
    u32 out_height, out_width;
    u32 taps, filter_w;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    Divisor by_taps, by_filter_w, by_out_height, by_out_width;
};

// A sample of a pixel's list, and the pixel's share in it.
struct alignas(8) Entry {
    u32 sample;
    float share;
};

// Along an axis, the pixel before a point and its distance, and which of it (bit 0) and the next pixel (bit
// 1) are on the map; neither if the point is a whole pixel or more outside, or nowhere. A pixel of share zero
// counts, as the sample has a slope towards it.
struct Along {
    i32 before;
    float part;
    u32 on_map;

    __device__ inline Along(i32 tap, float offset, u32 size)
        : before(i32(u32(tap) + u32(__float2int_rd(offset)))), part(offset - floorf(offset)), on_map(0) {
        const bool outside = !(part >= 0.0f) || before >= i32(size) || (before < 0 && part == 0.0f);
        if (outside) return;
        if (u32(before) < size) on_map |= 1;
        if (u32(before) + 1 < size) on_map |= 2;
    }
};

// Where a sample lies; its four pixels are numbered row by row.
struct Place {
    i32 first;          // of its pixels, over all images
    u32 on_map;         // a bit each; none beyond the last sample
    float down, right;  // the point's distances from the first

    __device__ static inline Place of(u32 sample, const float* offsets, const Params& p) {
        if (sample >= p.samples) return Place{};
        const u32 pixel = sample / p.by_taps, tap = sample - pixel * p.taps, r = tap / p.by_filter_w;
        const Corner corner(p, pixel);
        const float2 offset = reinterpret_cast<const float2*>(offsets)[sample];
        const Along row(corner.h + i32(r) * p.dilation_h, offset.x, p.height);
        const Along column(corner.w + i32(tap - r * p.filter_w) * p.dilation_w, offset.y, p.width);
        const u32 on_map = (row.on_map & 1 ? column.on_map : 0) | (row.on_map & 2 ? column.on_map << 2 : 0);
        if (!on_map) return Place{};
        const u32 line = corner.image * p.height + u32(row.before);
        return Place{i32(line * p.width + u32(column.before)), on_map, row.part, column.part};
    }

    __device__ inline float share(u32 i) const {
        return (i / 2 ? down : 1.0f - down) * (i % 2 ? right : 1.0f - right);
    }

    // Calls `body` with the pixels that have a share in the sample, and that.
    template <typename F> __device__ inline void for_pixels(const Params& p, F body) const {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (on_map >> i & 1 && share(i) > 0.0f)
                body(u32(first) + i / 2 * p.width + i % 2, share(i));
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    clear(u32* __restrict__ counts, u32* __restrict__ taken, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < p.map_pixels) counts[i] = 0;
    if (i == 0) *taken = 0;
}

// Elements from the first pixel of a sample to that of number `i`.
__device__ inline u32 step_to(const Params& p, u32 i) { return (i / 2 * p.width + i % 2) * p.channels; }

__device__ inline void store_slopes(float* doffsets, u32 sample, const Params& p, float down, float right) {
    if (sample < p.samples) reinterpret_cast<float2*>(doffsets)[sample] = make_float2(down, right);
}

#if STORAGE != F32 && VECTOR > 1
// Adds the products of N times 32 channels: of two rows of the left factor, and a column of the right one if
// there is `any` left of it. Terms may come in any order that is that of both factors: a lane has eight
// neighbouring channels of a row, which are those of two products.
template <int N>
__device__ inline void multiply_channels(const storage_t* upper, const storage_t* lower,
                                         const storage_t* right, bool any, float (&sums)[4]) {
    Chunk a[N], b[N], c[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        a[i] = load_chunk(upper + i * 32);
        b[i] = load_chunk(lower + i * 32);
        c[i] = any ? load_chunk(right + i * 32) : Chunk{};
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            const u32 left[4] = {a[i].word[j], b[i].word[j], a[i].word[j + 1], b[i].word[j + 1]};
            Mma<storage_t>::multiply(sums, left, c[i].word[j], c[i].word[j + 1]);
        }
    }
}

// The slopes of the warp's 32 samples, four at a time, on tensor cores. Rows of the left factor are their
// sixteen pixels, columns of the right one their gradients, twice; of the product, each gradient's with its
// own pixels is taken.
__device__ inline void slopes(const storage_t* grads, const storage_t* x, float* doffsets, u32 first,
                              u32 places, const Params& p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = lane / 4, own = lane % 4;
    const u32 corner = row % 4, step = step_to(p, corner);
    for (u32 four = warp * WARP; four < (warp + 1) * WARP; four += 4) {
        const Sample upper = Sample::load(places + (four + row / 4) * 16);
        const Sample lower = Sample::load(places + (four + row / 4 + 2) * 16);
        const bool has_upper = upper.inside >> corner & 1, has_lower = lower.inside >> corner & 1;
        const u32 sample = first + four + corner;
        // Rows and columns that there are not are others, and their products are not taken.
        const storage_t* from_upper = x + (has_upper ? i64(upper.offset) + step : 0);
        const storage_t* from_lower = x + (has_lower ? i64(lower.offset) + step : 0);
        const storage_t* from_grad = grads + (sample < p.samples ? sample : 0) * p.channels;
        float sums[4] = {};
        u32 c = 0;
        // More than six loads at once would leave room for fewer warps.
#pragma unroll 1
        for (; c + 64 <= p.channels; c += 64) {
            const u32 at = c + own * 8;
            multiply_channels<2>(from_upper + at, from_lower + at, from_grad + at, true, sums);
        }
#pragma unroll 1
        for (; c < p.channels; c += 32) {
            const bool any = c + own * 8 < p.channels;
            const u32 at = any ? c + own * 8 : 0;
            multiply_channels<1>(from_upper + at, from_lower + at, from_grad + at, any, sums);
        }
        // Lanes of the first four columns have the products of their rows' samples: own = 0 of the upper
        // eight rows, own = 1 of the lower.
        const float of_upper = row / 4 ? sums[1] : sums[0], of_lower = row / 4 ? sums[3] : sums[2];
        const float product = own ? (has_lower ? of_lower : 0.0f) : (has_upper ? of_upper : 0.0f);
        const float down = own ? lower.down : upper.down, right = own ? lower.right : upper.right;
        float by_row = product * (corner % 2 ? right : 1.0f - right);
        float by_column = product * (corner / 2 ? down : 1.0f - down);
        by_row = corner / 2 ? by_row : -by_row;
        by_column = corner % 2 ? by_column : -by_column;
#pragma unroll
        for (int distance = 4; distance <= 8; distance *= 2) {
            by_row += __shfl_xor_sync(FULL_MASK, by_row, distance);
            by_column += __shfl_xor_sync(FULL_MASK, by_column, distance);
        }
        if (own < 2 && corner == 0)
            store_slopes(doffsets, first + four + 2 * own + row / 4, p, by_row, by_column);
    }
}
#else
// The slopes of the block's samples, LANES lanes a sample.
__device__ inline void slopes(const storage_t* grads, const storage_t* x, float* doffsets, u32 first,
                              u32 places, const Params& p) {
    for (u32 own = threadIdx.x / LANES; own < THREADS; own += THREADS / LANES) {
        const Sample at = Sample::load(places + own * 16);
        const storage_t* grad = grads + (first + own) * p.channels;
        float products[4] = {};
        for (u32 c = threadIdx.x % LANES * VECTOR; at.inside && c < p.channels; c += LANES * VECTOR) {
            float by[VECTOR];
            load_elements(grad + c, by);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (!(at.inside >> i & 1)) continue;
                float value[VECTOR];
                load_elements(x + (i64(at.offset) + c) + step_to(p, i), value);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) products[i] += by[v] * value[v];
            }
        }
        const float left = products[2] - products[0], right = products[3] - products[1];
        const float above = products[1] - products[0], below = products[3] - products[2];
        float by_row = left * (1.0f - at.right) + right * at.right;
        float by_column = above * (1.0f - at.down) + below * at.down;
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) {
            by_row += __shfl_xor_sync(FULL_MASK, by_row, distance);
            by_column += __shfl_xor_sync(FULL_MASK, by_column, distance);
        }
        if (threadIdx.x % LANES == 0) store_slopes(doffsets, first + own, p, by_row, by_column);
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    samples(const storage_t* __restrict__ grads, const storage_t* __restrict__ x,
            const float* __restrict__ offsets, u32* __restrict__ counts, float* __restrict__ doffsets,
            const Params p) {
    __shared__ alignas(16) u32 shared[THREADS * 4];
    const u32 first = blockIdx.x * THREADS, places = shared_address(shared);
    const Place place = Place::of(first + threadIdx.x, offsets, p);
    place.for_pixels(p, [&](u32 pixel, float) { atomicAdd(counts + pixel, 1u); });
    const i32 offset = place.first * i32(p.channels);
    Sample{offset, place.on_map, place.down, place.right}.store(places + threadIdx.x * 16);
    __syncthreads();
    slopes(grads, x, doffsets, first, places, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    reserve(const u32* __restrict__ counts, u32* __restrict__ taken, u32* __restrict__ ends, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, lane = threadIdx.x % WARP;
    const u32 count = i < p.map_pixels ? counts[i] : 0;
    // Of this lane and those before it.
    u32 sum = count;
#pragma unroll
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        const u32 other = __shfl_up_sync(FULL_MASK, sum, distance);
        if (lane >= distance) sum += other;
    }
    u32 first = 0;
    if (lane == WARP - 1) first = atomicAdd(taken, sum);
    first = __shfl_sync(FULL_MASK, first, WARP - 1);
    if (i < p.map_pixels) ends[i] = first + sum - count;
}

// Moves each pixel's end of its list, which is empty at first, behind its last entry.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    place(const float* __restrict__ offsets, u32* __restrict__ ends, Entry* __restrict__ entries,
          const Params p) {
    const u32 sample = blockIdx.x * THREADS + threadIdx.x;
    Place::of(sample, offsets, p).for_pixels(p, [&](u32 pixel, float share) {
        entries[atomicAdd(ends + pixel, 1u)] = Entry{sample, share};
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sort(const u32* __restrict__ counts, const u32* __restrict__ ends, const Entry* __restrict__ entries,
         Entry* __restrict__ sorted, const Params p) {
    const u32 pixel = blockIdx.x * (THREADS / SORTERS) + threadIdx.x / SORTERS;
    if (pixel >= p.map_pixels) return;
    const u32 count = counts[pixel], begin = ends[pixel] - count;
    entries += begin;
    for (u32 i = threadIdx.x % SORTERS; i < count; i += SORTERS) {
        const Entry own = entries[i];
        u32 before = 0;
#pragma unroll 8
        for (i32 other = 0; other < i32(count); ++other) before += entries[other].sample < own.sample;
        sorted[begin + before] = own;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gather(const storage_t* __restrict__ grads, const u32* __restrict__ counts, const u32* __restrict__ ends,
           const Entry* __restrict__ sorted, storage_t* __restrict__ dx, const Params p) {
    const u32 pixel = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (pixel >= p.map_pixels) return;
    const u32 end = ends[pixel], begin = end - counts[pixel];
    for (u32 c = threadIdx.x % LANES * VECTOR; c < p.channels; c += LANES * VECTOR) {
        const storage_t* own = grads + c;
        float sums[VECTOR] = {};
#pragma unroll 4
        for (u32 i = begin; i < end; ++i) {
            const Entry entry = sorted[i];
            float grad[VECTOR];
            load_elements(own + entry.sample * p.channels, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sums[v] = fmaf(grad[v], entry.share, sums[v]);
        }
        store_elements(dx + u64(pixel) * p.channels + c, sums);
    }
}
