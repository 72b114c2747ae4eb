// What the taps of a deformable convolution read (Dai et al., Deformable Convolutional Networks, ICCV 2017):
//
//   sample(b, p, q, r, s) = x at (p * stride - padding + r * dilation, ..) + offsets[b, p, q, r, s],
//
// bilinearly between the four pixels around that point, where pixels outside the map are zero and so is a
// point that lies a whole pixel or more outside, or nowhere (NaN, infinity).
//
// offsets are f32, (down, right). The point's shares between two pixels are those of the offset alone, which
// are exact: a sum with the tap's place would lose its last digits in wide maps. A pixel of share zero is not
// read. Where a tap falls serves all its channels: 16 bytes of shared memory, made once a block.
//
// An element costs 4 FMAs in f32, of 4 loaded elements; the sum is rounded once, to what x is stored as.
// Where all channels of 128 bytes are of one tap, warps blend 16-bit types on tensor cores (`Blend`), for a
// third of the instructions.
//
// `P`: parameters that have what window.cuh's and gather.cuh's both say of the maps.
#pragma once
#include "common/mma.cuh"
#include "common/vector.cuh"
#include "conv/corner.cuh"

// Along an axis: the pixel before a point, how far behind it the point lies, and which of it (bit 0) and the
// next pixel (bit 1) have a share and lie on the map.
struct Point {
    i32 before;
    float part;
    u32 inside;

    // Conversion saturates, and what wraps around lies outside.
    __device__ inline Point(i32 tap, float offset, u32 size)
        : before(i32(u32(tap) + u32(__float2int_rd(offset)))), part(offset - floorf(offset)), inside(0) {
        if (part >= 0.0f && u32(before) < size) inside |= 1;
        if (part > 0.0f && u32(before) + 1 < size) inside |= 2;
    }
};

// Where a tap of a pixel falls.
struct Sample {
    i32 offset;         // of the first channel of the pixel above and left of the point
    u32 inside;         // a bit each of the four pixels, row by row, that is read
    float down, right;  // the point's distances from the first

    __device__ inline void store(u32 shared) const {
        store_shared_chunk(shared,
                           Chunk{{u32(offset), inside, __float_as_uint(down), __float_as_uint(right)}});
    }

    __device__ static inline Sample load(u32 shared) {
        float word[4];
        load_shared_floats(word, shared);
        return Sample{i32(__float_as_uint(word[0])), __float_as_uint(word[1]), word[2], word[3]};
    }

    // The chunk of channels from `channel`.
    template <typename P> __device__ inline Chunk chunk(const P& p, const storage_t* x, u32 channel) const {
        constexpr int COUNT = Lanes<storage_t>::count;
        Chunk pixel[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) pixel[i] = inside >> i & 1 ? load_chunk(x + at(p, i, channel)) : Chunk{};
        float sum[COUNT] = {};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            float v[COUNT];
            unpack(pixel[i], v, storage_t{});
            const float share = share_of(i);
#pragma unroll
            for (int e = 0; e < COUNT; ++e) sum[e] = __fmaf_rn(v[e], share, sum[e]);
        }
        return pack(sum, storage_t{});
    }

    // One channel, not rounded.
    template <typename P>
    __device__ inline float element(const P& p, const storage_t* x, u32 channel) const {
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            if (inside >> i & 1) sum = __fmaf_rn(to_f32(x[at(p, i, channel)]), share_of(i), sum);
        return sum;
    }

    __device__ inline float share_of(u32 i) const {
        return (i / 2 ? down : 1.0f - down) * (i % 2 ? right : 1.0f - right);
    }

private:
    template <typename P> __device__ inline i64 at(const P& p, u32 i, u32 channel) const {
        return i64(offset) + (i / 2 * p.width + i % 2) * p.channels + channel;
    }
};

// That of a pixel's tap in row `r` and column `s` of a filter of `height` by `width`; nothing beyond the last
// pixel.
template <typename P>
__device__ inline Sample sample_of(const P& p, const float* offsets, u32 pixel, u32 r, u32 s, u32 height,
                                   u32 width) {
    if (pixel >= p.pixels) return Sample{};
    const float* offset = offsets + (u64(pixel) * (height * width) + r * width + s) * 2;
    const Corner first(p, pixel);
    const Point row(first.h + i32(r) * p.dilation_h, offset[0], p.height);
    const Point column(first.w + i32(s) * p.dilation_w, offset[1], p.width);
    const u32 inside = (row.inside & 1 ? column.inside : 0) | (row.inside & 2 ? column.inside << 2 : 0);
    if (!inside) return Sample{};
    const u32 line = first.image * p.height + u32(row.before);
    return Sample{i32((line * p.width + u32(column.before)) * p.channels), inside, row.part, column.part};
}

#if STORAGE != F32
// Samples of a warp, four at once, blended by tensor cores: terms of a product are the four pixels of each of
// the samples, its rows channels, its columns the shares of a sample, as the sum of two 16-bit numbers. So
// shares keep 16 bits and more (those of f16 to 2^-25), products are exact, and the sum is f32.
//
// With g = lane / 4 and t = lane % 4, a lane has a chunk of channels of sample t: its pixels' chunks, two of
// which make a register of the product's left factor, and of the result both columns of its sample. Its
// chunk may be any; only the sample must be that of all lanes of the same t. What is not finite makes NaN of
// its channels in all four samples.
//
// In shared memory, of each sample: a word, its element's offset and which pixels are read, in the four
// lowest bits (offsets are multiples of 64), and 16 bytes of shares.
template <typename T> struct Blend {
    static constexpr u32 BYTES = 20;
    static constexpr u32 ALL = 15;

    // Of the lane's channels, where the four pixels of a sample are read from.
    const T* corner[4];

    template <typename P> __device__ inline Blend(const P& p, const T* x, u32 channel) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            corner[i] = x + channel + (i / 2 * p.width + i % 2) * p.channels;
    }

    __device__ inline void advance(i32 channels) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) corner[i] += channels;
    }

    // Puts down number `i` of the samples, whose shares lie at `shares` and words at `words`.
    __device__ static inline void store(const Sample& sample, u32 shares, u32 words, u32 i) {
        Chunk chunk;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const float left = sample.share_of(2 * half), right = sample.share_of(2 * half + 1);
            const u32 high = pack2(left, right, T{});
            const float2 rounded = unpack2(high, T{});
            chunk.word[half] = high;
            chunk.word[2 + half] = pack2(left - rounded.x, right - rounded.y, T{});
        }
        store_shared_chunk(shares + i * 16, chunk);
        store_shared_word(words + i * 4, u32(sample.offset) | sample.inside);
    }

    // Stores the lane's chunks of COUNT samples from number `i`, ROWS apart, in as many rows of 128 bytes
    // from `to`, GROUP of them on their way at once. All lanes of a warp take part.
    template <u32 COUNT, u32 ROWS, u32 GROUP>
    __device__ inline void chunks(u32 shares, u32 words, u32 i, u32 to) const {
        static_assert(COUNT % GROUP == 0, "whole groups");
#pragma unroll
        for (u32 first = 0; first < COUNT; first += GROUP) {
            Chunk pixel[GROUP][4];
#pragma unroll
            for (u32 j = 0; j < GROUP; ++j)
                load(pixel[j], load_shared_word(words + (i + (first + j) * ROWS) * 4));
#pragma unroll
            for (u32 j = 0; j < GROUP; ++j) {
                const u32 row = (first + j) * ROWS;
                store_shared_chunk(to + row * 128, blend(pixel[j], shares + (i + row) * 16));
            }
        }
    }

private:
    __device__ inline void load(Chunk (&pixel)[4], u32 word) const {
        if (__all_sync(~0u, (word & ALL) == ALL)) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) pixel[j] = load_chunk(corner[j] + i32(word - ALL));
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                pixel[j] = word >> j & 1 ? load_chunk(corner[j] + i32(word & ~ALL)) : Chunk{};
        }
    }

    __device__ static inline Chunk blend(const Chunk (&pixel)[4], u32 shares) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        u32 share[2];
        load_shared_words(share, shares + g % 2 * 8);
        // Column g is of sample g / 2: the higher parts of its shares, or the lower ones.
        const u32 b0 = g / 2 == t ? share[0] : 0, b1 = g / 2 == t ? share[1] : 0;
        Chunk result;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 a[4] = {lower_halves(pixel[0].word[j], pixel[1].word[j]),
                              upper_halves(pixel[0].word[j], pixel[1].word[j]),
                              lower_halves(pixel[2].word[j], pixel[3].word[j]),
                              upper_halves(pixel[2].word[j], pixel[3].word[j])};
            float sum[4];
            Mma<T>::product(sum, a, b0, b1);
            result.word[j] = pack2(sum[0] + sum[1], sum[2] + sum[3], T{});
        }
        return result;
    }
};
#endif
