// What one warp computes of a matrix product: d[m, n] += sum over k of a[m, k] * b[n, k].
//
// Both operands lie in shared memory row by row along k, in swizzled rows of `chunks` chunks of 16 bytes
// (swizzle.cuh). A step takes the 16 * chunks bytes of k that are there. `WarpTile` multiplies 16-bit types,
// and f32 as TF32, on tensor cores; `WarpTileTf32x3` multiplies f32 there with almost all its digits,
// `WarpTileF32` with FMA. Lanes hold d in different ways, which `for_pairs` and `for_each` hide.
#pragma once
#include "common/mma.cuh"
#include "common/swizzle.cuh"
#include "common/vector.cuh"

// 16 * M_TILES rows by 16 * N_PAIRS columns on tensor cores.
//
// Each 32 bytes of k take M_TILES + N_PAIRS loads of four matrices and 2 * M_TILES * N_PAIRS products.
template <typename T, int M_TILES, int N_PAIRS, int chunks> struct WarpTile {
    static constexpr int rows = 16 * M_TILES;
    static constexpr int columns = 16 * N_PAIRS;
    float d[M_TILES][2 * N_PAIRS][4];

    __device__ inline void clear() {
#pragma unroll
        for (int i = 0; i < M_TILES; ++i)
#pragma unroll
            for (int j = 0; j < 2 * N_PAIRS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) d[i][j][e] = 0.0f;
    }

    // `a` and `b`: shared addresses of the tiles, multiples of 128; the warp's first row in each, a multiple
    // of 16. `first`: nothing is added to, and d need not be cleared.
    template <bool first = false>
    __device__ inline void multiply(u32 a, u32 a_row, u32 b, u32 b_row, u32 lane) {
        // Sixteen rows further the swizzle is the same, and a step along k changes its bits alone: one
        // address an operand.
        const u32 a_first = a + swizzled<chunks>(a_row + lane % 16, lane / 16);
        const u32 b_first = b + swizzled<chunks>(b_row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
        for (int step = 0; step < chunks / 2; ++step) {
            u32 fa[M_TILES][4], fb[N_PAIRS][4];
#pragma unroll
            for (int i = 0; i < M_TILES; ++i)
                load_fragment(fa[i], (a_first ^ (step * 32)) + i * 256 * chunks);
#pragma unroll
            for (int j = 0; j < N_PAIRS; ++j)
                load_fragment(fb[j], (b_first ^ (step * 32)) + j * 256 * chunks);
#pragma unroll
            for (int i = 0; i < M_TILES; ++i)
#pragma unroll
                for (int j = 0; j < N_PAIRS; ++j) {
                    if constexpr (first) {
                        if (step == 0) {
                            Mma<T>::product(d[i][2 * j], fa[i], fb[j][0], fb[j][1]);
                            Mma<T>::product(d[i][2 * j + 1], fa[i], fb[j][2], fb[j][3]);
                            continue;
                        }
                    }
                    Mma<T>::multiply(d[i][2 * j], fa[i], fb[j][0], fb[j][1]);
                    Mma<T>::multiply(d[i][2 * j + 1], fa[i], fb[j][2], fb[j][3]);
                }
        }
    }

    // Calls f(left, right, row, column) for each pair of neighbours (`column` is the left one's) that this
    // lane holds of band `i`, the 16 rows from 16 i; rows are counted in the band.
    template <typename F> __device__ inline void for_pairs(int i, u32 lane, F f) const {
#pragma unroll
        for (int j = 0; j < 2 * N_PAIRS; ++j) {
            f(d[i][j][0], d[i][j][1], lane / 4, j * 8 + lane % 4 * 2);
            f(d[i][j][2], d[i][j][3], lane / 4 + 8, j * 8 + lane % 4 * 2);
        }
    }

private:
    __device__ static inline void load_fragment(u32 (&r)[4], u32 shared) {
        load_matrices(r, shared);
        if (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) r[i] = to_tf32(r[i]);
        }
    }
};

// f32 on tensor cores: each factor is the sum of two TF32 numbers, 22 of its 24 bits, and a product that of
// three, the smallest first; what is left out, the product of both lower parts, is 2^-22 of it. Tensor cores
// cut their sums towards zero, which a long chain turns into a bias of up to 2^-23 of the sum a step. So each
// step of k starts from zero, where that bias is one of the step's own small sum, and is added with FADD,
// which rounds to nearest (Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores").
// As `WarpTile` else.
template <int M_TILES, int N_PAIRS, int chunks> struct WarpTileTf32x3
    : WarpTile<float, M_TILES, N_PAIRS, chunks> {
    __device__ inline void multiply(u32 a, u32 a_row, u32 b, u32 b_row, u32 lane) {
        const u32 a_first = a + swizzled<chunks>(a_row + lane % 16, lane / 16);
        const u32 b_first = b + swizzled<chunks>(b_row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
        // Unrolled, the sums of all steps would be in flight at once, and registers would spill.
#pragma unroll 1
        for (int step = 0; step < chunks / 2; ++step) {
            Parts fa[M_TILES];
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) fa[i].load((a_first ^ (step * 32)) + i * 256 * chunks);
#pragma unroll
            for (int j = 0; j < N_PAIRS; ++j) {
                Parts fb;
                fb.load((b_first ^ (step * 32)) + j * 256 * chunks);
#pragma unroll
                for (int i = 0; i < M_TILES; ++i)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                        Mma<float>::multiply(sum, fa[i].low, fb.high[2 * half], fb.high[2 * half + 1]);
                        Mma<float>::multiply(sum, fa[i].high, fb.low[2 * half], fb.low[2 * half + 1]);
                        Mma<float>::multiply(sum, fa[i].high, fb.high[2 * half], fb.high[2 * half + 1]);
#pragma unroll
                        for (int e = 0; e < 4; ++e) this->d[i][2 * j + half][e] += sum[e];
                    }
            }
        }
    }

private:
    struct Parts {
        u32 high[4], low[4];

        __device__ inline void load(u32 shared) {
            u32 r[4];
            load_matrices(r, shared);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                high[i] = to_tf32(r[i]);
                low[i] = to_tf32(__float_as_uint(__uint_as_float(r[i]) - __uint_as_float(high[i])));
            }
        }
    };
};

// 4 * row_count rows by 8 * column_count columns of true f32. A lane holds row_count by column_count
// elements: columns lane % 8 + 8 j, so that the stores of a column step fill sectors of 32 bytes, and rows
// lane / 8 + row_of(i), in two halves four rows apart.
//
// Each 16 bytes of k (four elements) take row_count + column_count loads of 16 bytes and 4 * row_count *
// column_count FMAs.
template <int row_count, int column_count, int chunks> struct WarpTileF32 {
    static constexpr int rows = 4 * row_count;
    static constexpr int columns = 8 * column_count;
    float d[row_count][column_count];

    __device__ inline void clear() {
#pragma unroll
        for (int i = 0; i < row_count; ++i)
#pragma unroll
            for (int j = 0; j < column_count; ++j) d[i][j] = 0.0f;
    }

    // `a` and `b`: shared addresses of the tiles, multiples of 128; the warp's first row in each, a multiple
    // of 8.
    __device__ inline void multiply(u32 a, u32 a_row, u32 b, u32 b_row, u32 lane) {
        // Eight rows further the swizzle is the same; four rows further it differs by chunks / 2.
        const u32 a_first = a + swizzled<chunks>(a_row + lane / 8, 0);
        const u32 b_first = b + swizzled<chunks>(b_row + lane % 8, 0);
#pragma unroll
        for (int chunk = 0; chunk < chunks; ++chunk) {
            float fa[row_count][4], fb[4];
#pragma unroll
            for (int i = 0; i < row_count; ++i) {
                const u32 half = i < row_count / 2 ? 0 : chunks / 2;
                load_shared_floats(fa[i], (a_first ^ ((chunk ^ half) * 16)) + row_of(i) * 16 * chunks);
            }
#pragma unroll
            for (int j = 0; j < column_count; ++j) {
                load_shared_floats(fb, (b_first ^ (chunk * 16)) + j * 128 * chunks);
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int i = 0; i < row_count; ++i) d[i][j] = __fmaf_rn(fa[i][k], fb[k], d[i][j]);
            }
        }
    }

    // Calls f(value, row, column) for each element that this lane holds.
    template <typename F> __device__ inline void for_each(u32 lane, F f) const {
#pragma unroll
        for (int i = 0; i < row_count; ++i)
#pragma unroll
            for (int j = 0; j < column_count; ++j) f(d[i][j], row_of(i) + lane / 8, j * 8 + lane % 8);
    }

private:
    __device__ static constexpr u32 row_of(int i) {
        return i % (row_count / 2) * 8 + i / (row_count / 2) * 4;
    }
};
