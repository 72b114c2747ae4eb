// Gradients of a deformable convolution's map and offsets from those of its samples, grads [B, P, Q, R * S,
// C] in f32: what a sample's gradient is to the four pixels that it blends (deformed.cuh), and to its place.
//
//   dx[b, h, w, c] = sum over the samples that blend the pixel of grad * share
//   doffsets[.., axis] = sum over channels of grad * (slope of the sample along the axis)
//
// Which samples blend a pixel is only known from the offsets, so samples add to pixels. That the order does
// not show, they add whole numbers of 64 bits: grad * share * scale, `scale` being the power of two that
// leaves room for every sample there is at the largest gradient there is. A sum so keeps 2^-40 of the largest
// gradient, where f32 keeps 2^-24 of itself.
//
//   largest  the largest size of a gradient, as the bits of a float, by integer maxima; NaN and infinity are
//            above all numbers, and make all of dx NaN
//   scatter  a warp a sample: its lanes take channels in turn
//   gather   dx as it is stored
//
// `sums` and `most` begin as zeros (`clear`). Each gradient is read twice, each pixel of x four times and
// added to four times, through L2; 18 FLOPs a channel of a sample.
//
// Defines: STORAGE (of x and dx).
#include "common/divisor.cuh"
#include "common/reduce.cuh"

#define THREADS 256

struct Params {
    u32 pixels, samples;  // B * P * Q; R * S times as many
    u32 height, width, channels;
    u32 out_height, out_width;
    u32 taps, filter_w;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    i32 room;    // bits that as many terms as there are samples take
    u32 count;   // elements of x
    Divisor by_taps, by_filter_w, by_out_height, by_out_width;
};

// log2 of the scale, for gradients of up to `most`.
__device__ inline i32 scale_bits(const Params& p, u32 most) {
    const i32 exponent = i32(most >> 23) - 127;
    return min(61 - p.room - exponent, 126);
}
__device__ inline float power_of_two(i32 exponent) {
    return __uint_as_float(u32(max(exponent, -126) + 127) << 23);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    clear(u64* __restrict__ sums, u32* __restrict__ most, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < p.count) sums[i] = 0;
    if (i == 0) *most = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    largest(const float* __restrict__ grads, u32* __restrict__ most, const Params p) {
    const u64 count = u64(p.samples) * p.channels;
    u32 own = 0;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * THREADS)
        own = max(own, __float_as_uint(grads[i]) & 0x7fffffff);
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        own = max(own, __shfl_xor_sync(FULL_MASK, own, distance));
    if (threadIdx.x % WARP == 0) atomicMax(most, own);
}

// Along an axis, the pixel before a point and its distance, and which of it (bit 0) and the next pixel (bit
// 1) are on the map; neither if the point is a whole pixel or more outside, or nowhere.
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

    __device__ inline float share(u32 i) const { return i ? part : 1.0f - part; }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    scatter(const float* __restrict__ grads, const storage_t* __restrict__ x,
            const float* __restrict__ offsets, const u32* __restrict__ most, u64* __restrict__ sums,
            float* __restrict__ doffsets, const Params p) {
    const u32 sample = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (sample >= p.samples) return;
    const u32 pixel = sample / p.by_taps, tap = sample - pixel * p.taps;
    const u32 line = pixel / p.by_out_width, image = line / p.by_out_height, r = tap / p.by_filter_w;
    const i32 h = i32(line - image * p.out_height) * p.stride_h - p.padding_h + i32(r) * p.dilation_h;
    const i32 w = i32(pixel - line * p.out_width) * p.stride_w - p.padding_w +
                  i32(tap - r * p.filter_w) * p.dilation_w;
    const Along down(h, offsets[u64(sample) * 2], p.height);
    const Along right(w, offsets[u64(sample) * 2 + 1], p.width);
    const float scale = power_of_two(scale_bits(p, *most));
    float by_row = 0.0f, by_column = 0.0f;
#pragma unroll
    for (u32 corner = 0; corner < 4; ++corner) {
        const u32 i = corner / 2, j = corner % 2;
        if (!(down.on_map >> i & 1) || !(right.on_map >> j & 1)) continue;
        const u32 row = image * p.height + u32(down.before + i32(i));
        const u32 at = (row * p.width + u32(right.before + i32(j))) * p.channels;
        const float share = down.share(i) * right.share(j);
        for (u32 c = lane; c < p.channels; c += WARP) {
            const float grad = grads[u64(sample) * p.channels + c];
            const float product = grad * to_f32(x[at + c]);
            by_row += i ? product * right.share(j) : -product * right.share(j);
            by_column += j ? product * down.share(i) : -product * down.share(i);
            if (share > 0.0f) atomicAdd(sums + at + c, u64(__float2ll_rn(grad * share * scale)));
        }
    }
    by_row = warp_sum(by_row);
    by_column = warp_sum(by_column);
    if (lane > 0) return;
    doffsets[u64(sample) * 2] = by_row;
    doffsets[u64(sample) * 2 + 1] = by_column;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gather(const u64* __restrict__ sums, const u32* __restrict__ most, storage_t* __restrict__ dx,
           const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.count) return;
    const bool finite = *most < 0x7f800000u;
    // In two steps, as the scale may be beyond the powers of two whose inverse f32 has.
    const i32 bits = scale_bits(p, *most), half = bits / 2;
    const float sum = __ll2float_rn(i64(sums[i])) * power_of_two(-half) * power_of_two(half - bits);
    dx[i] = from_f32<storage_t>(finite ? sum : __uint_as_float(0x7fffffffu));
}
