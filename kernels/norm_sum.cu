// y = sum over terms of activation((x - mean) / sqrt(variance + eps) * gamma[c] + beta[c]), or of x as it is,
// over maps [B, pixels, C]; mean and biased variance of the pixels and the WIDTH channels of a group of an
// image, from the moments of its parts (conv/tail.cuh, group_moments.cu), which came with x.
//
// A block takes a slice of a few vectors of channels, so that it reads the moments of few groups, and ROWS *
// BATCH * BATCHES pixels. Thread (vector, row) starts its first loads, then sums every ROWS-th part of its
// group, relative to the first part's mean, which all share: with n_i elements, mean m_i and spread s_i of
// part i and d_i = m_i - m_0,
//
//   n = sum n_i,   mean = m_0 + (sum n_i d_i) / n,   n * variance = sum (s_i + n_i d_i^2) - (sum n_i d_i)^2 /
//   n
//
// which subtracts nothing large: the means of parts are close. Lanes, then warps put their sums together in a
// fixed order, and one thread a term and vector leaves scale and shift of its channels in shared memory.
//
// Reads every term and writes y once, (TERMS + 1) * B * pixels * C * sizeof(storage_t) bytes; 4 FLOPs an
// element of a normalised term. Bound by memory.
//
// Defines: STORAGE, ACTIVATION, WIDTH (a multiple of a chunk), TERMS, NORMS (bit t: term t is normalised),
// COLUMNS (vectors of a slice, a power of two up to 8). Blocks of COLUMNS x ROWS = THREADS threads.
#include "common/activation.cuh"
#include "common/async_copy.cuh"
#include "common/elements.cuh"
#include "common/moments.cuh"

constexpr u32 THREADS = 512;
constexpr u32 ROWS = THREADS / COLUMNS;
// Pixels that a thread takes at a time (its loads in flight), and how often.
constexpr int BATCH = 4;
constexpr int BATCHES = 2;
constexpr int VECTOR = Lanes<storage_t>::count;

struct Params {
    u32 pixels;
    u32 channels;
    u32 parts;  // of an image
    float eps;
};

// A term's number, known to the compiler: an array of terms that is indexed by a variable would lie in local
// memory.
template <int t> struct Index {
    static constexpr int value = t;
    static constexpr bool normalised = NORMS >> t & 1;
};

// f(Index<t>) for every term t.
template <int t = 0, typename F> __device__ inline void for_each_term(F f) {
    if constexpr (t < TERMS) {
        f(Index<t>{});
        for_each_term<t + 1>(f);
    }
}

// The operand of term t.
template <int t, typename T> __device__ inline T of_term(T of0, T of1, T of2, T of3) {
    static_assert(t < 4, "four terms");
    if constexpr (t == 0) return of0;
    if constexpr (t == 1) return of1;
    if constexpr (t == 2) return of2;
    if constexpr (t == 3) return of3;
}

// Sums over parts, relative to the first part's mean.
struct PartSums {
    float weighted, spread;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) norm_sum(
    const storage_t* __restrict__ x0, const Moments* __restrict__ moments0, const float* __restrict__ gamma0,
    const float* __restrict__ beta0, const storage_t* __restrict__ x1, const Moments* __restrict__ moments1,
    const float* __restrict__ gamma1, const float* __restrict__ beta1, const storage_t* __restrict__ x2,
    const Moments* __restrict__ moments2, const float* __restrict__ gamma2, const float* __restrict__ beta2,
    const storage_t* __restrict__ x3, const Moments* __restrict__ moments3, const float* __restrict__ gamma3,
    const float* __restrict__ beta3, storage_t* __restrict__ y, const Params p) {
    __shared__ PartSums warps[TERMS][THREADS / WARP][COLUMNS];
    // Scale and shift by four channels, those of neighbouring vectors side by side, so that lanes meet in no
    // bank.
    __shared__ alignas(16) float affine[TERMS][2][VECTOR / 4][COLUMNS][4];
    const u32 thread = threadIdx.y * COLUMNS + threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    const u32 slice = blockIdx.y * COLUMNS * VECTOR, channel = slice + threadIdx.x * VECTOR;
    const u32 groups = p.channels / WIDTH;
    const u64 image = u64(blockIdx.z) * p.pixels * p.channels + channel;
    const auto pixel = [&](int batch, int i) {
        return (blockIdx.x * BATCHES + batch) * ROWS * BATCH + i * ROWS + threadIdx.y;
    };
    const auto place = [&](int batch, int i) { return image + u64(pixel(batch, i)) * p.channels; };

    Chunk chunk[BATCH];
    const auto load = [&](int batch, const storage_t* x) {
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (pixel(batch, i) < p.pixels) chunk[i] = load_chunk(x + place(batch, i));
        }
    };
    load(0, x0);

    const float full = float(PART_PIXELS * WIDTH),
                last = float((p.pixels - (p.parts - 1) * PART_PIXELS) * WIDTH);
    const auto parts_of = [&](auto term, u32 group) {
        return of_term<term.value>(moments0, moments1, moments2, moments3) +
               u64(blockIdx.z) * p.parts * groups + group;
    };
    for_each_term([&](auto term) {
        if constexpr (!term.normalised) return;
        const Moments* parts = parts_of(term, channel / WIDTH);
        const float origin = parts[0].mean;
        PartSums sums{0.0f, 0.0f};
        for (u32 i = threadIdx.y; i < p.parts; i += ROWS) {
            const Moments part = parts[u64(i) * groups];
            const float n = i + 1 < p.parts ? full : last, d = part.mean - origin;
            sums.weighted += n * d;
            sums.spread += part.m2 + n * d * d;
        }
#pragma unroll
        for (u32 distance = COLUMNS; distance < WARP; distance *= 2) {
            sums.weighted += __shfl_xor_sync(FULL_MASK, sums.weighted, distance);
            sums.spread += __shfl_xor_sync(FULL_MASK, sums.spread, distance);
        }
        if (lane < COLUMNS) warps[term.value][warp][lane] = sums;
    });
    __syncthreads();

    for_each_term([&](auto term) {
        constexpr int t = term.value;
        if (!term.normalised || thread / COLUMNS != t) return;
        const u32 column = thread % COLUMNS, first = slice + column * VECTOR;
        PartSums all{0.0f, 0.0f};
#pragma unroll 4
        for (u32 w = 0; w < THREADS / WARP; ++w) {
            all.weighted += warps[t][w][column].weighted;
            all.spread += warps[t][w][column].spread;
        }
        const float total = float(p.pixels) * float(WIDTH), moved = __fdividef(all.weighted, total);
        const float variance = __fdividef(fmaxf(all.spread - all.weighted * moved, 0.0f), total);
        const float mean = parts_of(term, first / WIDTH)[0].mean + moved,
                    inverse = inverse_root(variance + p.eps);
        const float* gamma = of_term<t>(gamma0, gamma1, gamma2, gamma3);
        const float* beta = of_term<t>(beta0, beta1, beta2, beta3);
        for (int v = 0; v < VECTOR; ++v) {
            const float scale = gamma[first + v] * inverse;
            affine[t][0][v / 4][column][v % 4] = scale;
            affine[t][1][v / 4][column][v % 4] = beta[first + v] - mean * scale;
        }
    });
    __syncthreads();

#pragma unroll
    for (int batch = 0; batch < BATCHES; ++batch) {
        float sum[BATCH][VECTOR];
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[i][v] = 0.0f;
        for_each_term([&](auto term) {
            constexpr int t = term.value;
            if (t > 0 || batch > 0) load(batch, of_term<t>(x0, x1, x2, x3));
            float scale[VECTOR], shift[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR && term.normalised; v += 4) {
                load_shared_floats(*reinterpret_cast<float (*)[4]>(scale + v),
                                   shared_address(affine[t][0][v / 4][threadIdx.x]));
                load_shared_floats(*reinterpret_cast<float (*)[4]>(shift + v),
                                   shared_address(affine[t][1][v / 4][threadIdx.x]));
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                if (pixel(batch, i) >= p.pixels) break;
                float value[VECTOR];
                unpack(chunk[i], value, storage_t{});
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    if (term.normalised) value[v] = activate<ACTIVATION>(value[v] * scale[v] + shift[v]);
                    sum[i][v] += value[v];
                }
            }
        });
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (pixel(batch, i) < p.pixels) store_elements(y + place(batch, i), sum[i]);
        }
    }
}
