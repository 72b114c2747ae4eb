// The end of a convolution whose reduction was split: y[i] = epilogue(sum over z of partial[z][i]), z
// ascending, so that the bits do not depend on which block came last.
//
// i runs over pixels times filters, filters fastest; partial is f32. One thread takes one chunk of 16 bytes
// of y (WHOLE_CHUNKS: the filters are whole chunks), or one element. UPSAMPLED: the residual has half the
// size, see tail.cuh. Reads splits * 4 bytes an element and writes one; the partial sums were written just
// before and come from L2.
//
// Defines: STORAGE, ACTIVATION, WHOLE_CHUNKS, UPSAMPLED.
#include "common/divisor.cuh"
#include "common/epilogue.cuh"

struct Params {
    u32 count;    // threads that have work: elements or chunks of y
    u32 filters;
    u32 splits;
    u32 out_width;
    Divisor by_filters, by_out_width;
};

// Where the residual of element `at` of y lies, of channel `n`.
__device__ inline u64 residual_of(const Params& p, u64 at, u32 n) {
#if UPSAMPLED
    const u32 m = u32(at) / p.by_filters, line = m / p.by_out_width, column = m - line * p.out_width;
    return u64(line / 2 * (p.out_width / 2) + column / 2) * p.filters + n;
#else
    return at;
#endif
}

extern "C" __global__ void __launch_bounds__(256)
    add_partials(const float* __restrict__ partial, const float* __restrict__ bias,
                 const storage_t* __restrict__ residual, storage_t* __restrict__ y, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    const Epilogue<storage_t> epilogue{bias, residual, y};
#if WHOLE_CHUNKS
    constexpr u32 COUNT = Lanes<storage_t>::count;
    const u64 at = u64(i) * COUNT, size = u64(p.count) * COUNT;
    float sum[COUNT] = {};
    for (u32 z = 0; z < p.splits; ++z) {
#pragma unroll
        for (u32 j = 0; j < COUNT; j += 4) {
            float x[4];
            load_vector(partial + z * size + at + j, x);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) sum[j + e] += x[e];
        }
    }
    const u32 n = u32(at) - u32(at) / p.by_filters * p.filters;
    epilogue.store_chunk_of<ACTIVATION>(sum, at, n, residual_of(p, at, n));
#else
    float sum = 0.0f;
    for (u32 z = 0; z < p.splits; ++z) sum += partial[u64(z) * p.count + i];
    const u32 n = i - i / p.by_filters * p.filters;
    epilogue.store<ACTIVATION>(sum, i, n, residual_of(p, i, n));
#endif
}
