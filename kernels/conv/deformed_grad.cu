// Gradients of a deformable convolution's map and offsets from those of its samples, grads [B, P, Q, R * S,
// C] in f32: what a sample's gradient is to the four pixels that it blends (deformed.cuh), and to its place.
//
//   dx[b, h, w, c] = sum over the samples that blend the pixel of grad * share
//   doffsets[.., axis] = sum over channels of grad * (slope of the sample along the axis)
//
// Which samples blend a pixel is only known from the offsets: each pixel gets a list of them, whose length is
// counted first, and adds up theirs. No channel is added to memory by atomics, which count and take places
// alone. The order of a list is that of chance, so sums are of whole numbers of 64 bits, which have none:
// grad * share * scale, `scale` being the power of two that leaves room for every sample there is at the
// largest gradient there is. A sum so keeps 2^-40 of the largest gradient, where f32 keeps 2^-24 of itself.
//
//   samples  LANES lanes a sample, 16 bytes of channels of x a lane and turn: doffsets, from the products of
//            the sample's gradient with its four pixels; the pixels' counts; and the largest size of a
//            gradient, as the bits of a float, by integer maxima: NaN and infinity are above all numbers, and
//            make all of dx NaN
//   reserve  a thread a pixel: where its list lies, behind those of others that came before by chance
//   place    a thread a pixel of a sample: puts it on the list
//   gather   a warp a pixel, four channels a lane and turn: dx
//
// `counts` and `totals` begin as zeros (`clear`). Each gradient is read five times, once with the four pixels
// of x and four times through L2 by these pixels; 18 FLOPs a channel of a sample.
//
// Defines: STORAGE (of x and dx), VECTOR (16 bytes of x, or 1).
#include "common/divisor.cuh"
#include "common/elements.cuh"
#include "common/reduce.cuh"

#define THREADS 256
// Lanes of a sample, and samples that they take one after the other.
#define LANES 16
#define OWN 4
// Channels of a lane that gathers.
#define CHANNELS (VECTOR == 1 ? 1 : 4)

struct Params {
    u32 samples;     // B * P * Q * R * S
    u32 map_pixels;  // B * H * W
    u32 height, width, channels;
    u32 out_height, out_width;
    u32 taps, filter_w;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    i32 room;  // bits that as many terms as there are samples take
    Divisor by_taps, by_filter_w, by_out_height, by_out_width;
};

struct Totals {
    u32 most;   // bits of the largest gradient
    u32 taken;  // places of lists
};

// A sample of a pixel's list.
struct alignas(8) Entry {
    u32 sample;
    float share;
};

// log2 of the scale, for gradients of up to `most`.
__device__ inline i32 scale_bits(const Params& p, u32 most) {
    const i32 exponent = i32(most >> 23) - 127;
    return min(61 - p.room - exponent, 126);
}
__device__ inline float power_of_two(i32 exponent) {
    return __uint_as_float(u32(max(exponent, -126) + 127) << 23);
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

// Where a sample lies; its four pixels are numbered row by row.
struct Place {
    Along down, right;
    u32 first;  // row of the map, over all images, before the point's rows

    __device__ static inline Place of(u32 sample, const float* offsets, const Params& p) {
        const u32 pixel = sample / p.by_taps, tap = sample - pixel * p.taps;
        const u32 line = pixel / p.by_out_width, image = line / p.by_out_height, r = tap / p.by_filter_w;
        const i32 h = i32(line - image * p.out_height) * p.stride_h - p.padding_h + i32(r) * p.dilation_h;
        const i32 w = i32(pixel - line * p.out_width) * p.stride_w - p.padding_w +
                      i32(tap - r * p.filter_w) * p.dilation_w;
        const float2 offset = reinterpret_cast<const float2*>(offsets)[sample];
        return Place{Along(h, offset.x, p.height), Along(w, offset.y, p.width), image * p.height};
    }

    __device__ inline bool on_map(u32 i) const {
        return down.on_map >> (i / 2) & right.on_map >> (i % 2) & 1;
    }
    __device__ inline bool nowhere() const { return down.on_map == 0 || right.on_map == 0; }
    __device__ inline float share(u32 i) const { return down.share(i / 2) * right.share(i % 2); }
    __device__ inline u32 pixel(u32 i, const Params& p) const {
        return (first + u32(down.before) + i / 2) * p.width + u32(right.before) + i % 2;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    clear(u32* __restrict__ counts, Totals* __restrict__ totals, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < p.map_pixels) counts[i] = 0;
    if (i == 0) *totals = Totals{0, 0};
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    samples(const float* __restrict__ grads, const storage_t* __restrict__ x,
            const float* __restrict__ offsets, Totals* __restrict__ totals, u32* __restrict__ counts,
            float* __restrict__ doffsets, const Params p) {
    __shared__ u32 largest;
    const u32 lane = threadIdx.x % LANES;
    u32 own = 0;
    if (threadIdx.x == 0) largest = 0;
    for (u32 turn = 0; turn < OWN; ++turn) {
        const u32 sample = (blockIdx.x * OWN + turn) * (THREADS / LANES) + threadIdx.x / LANES;
        // Lanes without a sample go along, for the sums.
        const bool any = sample < p.samples;
        const Place place = Place::of(any ? sample : 0, offsets, p);
        float products[4] = {};
        for (u32 c = lane * VECTOR; any && c < p.channels; c += LANES * VECTOR) {
            float grad[VECTOR];
            load_elements(grads + u64(sample) * p.channels + c, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) own = max(own, __float_as_uint(grad[v]) & 0x7fffffff);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (!place.on_map(i)) continue;
                float value[VECTOR];
                load_elements(x + u64(place.pixel(i, p)) * p.channels + c, value);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) products[i] += grad[v] * value[v];
            }
        }
        if (any && lane < 4 && place.on_map(lane) && place.share(lane) > 0.0f)
            atomicAdd(counts + place.pixel(lane, p), 1);
        float by_row = (products[2] - products[0]) * place.right.share(0) +
                       (products[3] - products[1]) * place.right.share(1);
        float by_column = (products[1] - products[0]) * place.down.share(0) +
                          (products[3] - products[2]) * place.down.share(1);
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) {
            by_row += __shfl_xor_sync(FULL_MASK, by_row, distance);
            by_column += __shfl_xor_sync(FULL_MASK, by_column, distance);
        }
        if (any && lane == 0) {
            const bool nowhere = place.nowhere();
            reinterpret_cast<float2*>(doffsets)[sample] =
                make_float2(nowhere ? 0.0f : by_row, nowhere ? 0.0f : by_column);
        }
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        own = max(own, __shfl_xor_sync(FULL_MASK, own, distance));
    __syncthreads();
    if (threadIdx.x % WARP == 0) atomicMax(&largest, own);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(&totals->most, largest);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    reserve(const u32* __restrict__ counts, Totals* __restrict__ totals, u32* __restrict__ ends,
            const Params p) {
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
    if (lane == WARP - 1) first = atomicAdd(&totals->taken, sum);
    first = __shfl_sync(FULL_MASK, first, WARP - 1);
    if (i < p.map_pixels) ends[i] = first + sum - count;
}

// Moves each pixel's end of its list, which is empty at first, behind its last entry.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    place(const float* __restrict__ offsets, u32* __restrict__ ends, Entry* __restrict__ entries,
          const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, sample = i / 4, corner = i % 4;
    if (sample >= p.samples) return;
    const Place place = Place::of(sample, offsets, p);
    const float share = place.share(corner);
    if (!place.on_map(corner) || !(share > 0.0f)) return;
    entries[atomicAdd(ends + place.pixel(corner, p), 1)] = Entry{sample, share};
}

__device__ inline void store_channels(storage_t* p, const float (&x)[1]) { *p = from_f32<storage_t>(x[0]); }
#if STORAGE == F32
__device__ inline void store_channels(storage_t* p, const float (&x)[4]) { store_vector(p, x); }
#else
__device__ inline void store_channels(storage_t* p, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack2(x[0], x[1], storage_t{}), pack2(x[2], x[3], storage_t{}));
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gather(const float* __restrict__ grads, const Totals* __restrict__ totals,
           const u32* __restrict__ counts, const u32* __restrict__ ends, const Entry* __restrict__ entries,
           storage_t* __restrict__ dx, const Params p) {
    const u32 pixel = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (pixel >= p.map_pixels) return;
    const u32 end = ends[pixel], begin = end - counts[pixel], most = totals->most;
    const bool finite = most < 0x7f800000u;
    // Back in two steps, as the scale may be beyond the powers of two whose inverse f32 has.
    const i32 bits = scale_bits(p, most), half = bits / 2;
    const float scale = power_of_two(bits), back[2] = {power_of_two(-half), power_of_two(half - bits)};
    for (u32 c = threadIdx.x % WARP * CHANNELS; c < p.channels; c += WARP * CHANNELS) {
        i64 sums[CHANNELS] = {};
#pragma unroll 4
        for (u32 i = begin; i < end; ++i) {
            const Entry entry = entries[i];
            const float factor = entry.share * scale;
            float grad[CHANNELS];
            load_elements(grads + u64(entry.sample) * p.channels + c, grad);
#pragma unroll
            for (int v = 0; v < CHANNELS; ++v) sums[v] += __float2ll_rn(grad[v] * factor);
        }
        float result[CHANNELS];
#pragma unroll
        for (int v = 0; v < CHANNELS; ++v) {
            const float sum = __ll2float_rn(sums[v]) * back[0] * back[1];
            result[v] = finite ? sum : __uint_as_float(0x7fffffffu);
        }
        store_channels(dx + u64(pixel) * p.channels + c, result);
    }
}
