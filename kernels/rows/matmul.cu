// Batched products of values: y[b, m, n] = sum over k of a[b, m, k] * b[b, k, n], either operand stored
// either way round, each f32 or 16-bit; the gradients of linear layers, of mask convolutions and of
// attention.
//
// A block computes a tile of TILE x TILE results over `split` terms, 32 a step, in 8 warps. Both operands
// pass through registers, where they become f32, into shared memory as [term][row]: four neighbours at a
// time, along whichever of the two they have neighbours. Row r of term t lies at r ^ (t / 4 % 8 * 4) in its
// line, and lines are 8 banks apart, so that neither the stores along terms nor the loads of fragments meet
// in a bank.
//
// MATH = 1: TF32 tensor cores (m16n8k8), which hold 16-bit elements exactly and round f32 to nearest; a warp
// has 32 x 16 results. MATH = 0: f32 throughout, 4 x 4 results a thread. Sums are f32. With `splits` above 1
// raw sums go to y [splits, B, M, N], which a second launch adds in order.
//
// 2 B M N K FLOPs; a is read N / TILE times and b M / TILE times, from L2.
//
// Grid: tiles of columns, tiles of rows, B x splits. Block: 256 threads. Defines: MATH, LEFT, RIGHT, RESULT
// (element types, numbers of common/storage.cuh).
#include "common/elements.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"

#define TILE 64
#define STEP 32
#define THREADS 256
#define PITCH (TILE + 8)

// How the matrices of an operand lie: elements from one row (m or n) to the next, from one term to the next,
// and from one matrix to the next.
struct Layout {
    u32 row_step, term_step, matrix_step;
    u32 wide;  // four neighbours from a multiple of four on are aligned
};

struct Params {
    u32 rows, columns, terms;
    u32 split;   // terms of a block, a multiple of STEP
    u32 splits;
    Layout left, right;
};

typedef float Tile[STEP][PITCH];

__device__ inline void load_four(const float* p, float (&x)[4]) { load_vector(p, x); }
template <typename T> __device__ inline void load_four(const T* p, float (&x)[4]) {
    const uint2 words = *reinterpret_cast<const uint2*>(p);
    x[0] = to_f32(T{u16(words.x)});
    x[1] = to_f32(T{u16(words.x >> 16)});
    x[2] = to_f32(T{u16(words.y)});
    x[3] = to_f32(T{u16(words.y >> 16)});
}

// `x` as the products take it.
__device__ inline float factor(float x) {
    return MATH == 1 ? __uint_as_float(to_tf32(__float_as_uint(x))) : x;
}

// A thread's part of an operand's steps: two runs of four neighbours.
template <typename T> struct Side {
    const T* from;  // of the block's first row
    u32 rows_left;
    Layout layout;
    float held[2][4];

    __device__ inline Side(const T* operand, u32 matrix, u32 row, u32 rows, const Layout& layout)
        : from(operand + u64(matrix) * layout.matrix_step + u64(row) * layout.row_step),
          rows_left(rows - row), layout(layout) {}

    __device__ inline bool along_terms() const { return layout.term_step == 1; }

    // Terms `term` .. `term` + STEP, zeros from `end` and beyond the rows.
    __device__ inline void load(u32 term, u32 end) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            if (along_terms()) {
                const u32 row = threadIdx.x / 8 + i * 32, t = term + threadIdx.x % 8 * 4;
                fetch(held[i], from + u64(row) * layout.row_step + t,
                      row < rows_left && t < end ? end - t : 0);
            } else {
                const u32 row = threadIdx.x % 16 * 4, t = term + threadIdx.x / 16 + i * 16;
                fetch(held[i], from + u64(t) * layout.term_step + row,
                      t < end && row < rows_left ? rows_left - row : 0);
            }
        }
    }

    __device__ inline void store(Tile& tile) const {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            if (along_terms()) {
                const u32 row = (threadIdx.x / 8 + i * 32) ^ (threadIdx.x % 8 * 4);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) tile[threadIdx.x % 8 * 4 + e][row] = factor(held[i][e]);
            } else {
                const u32 t = threadIdx.x / 16 + i * 16, row = (threadIdx.x % 16 * 4) ^ (t / 4 % 8 * 4);
                const float x[4] = {factor(held[i][0]), factor(held[i][1]), factor(held[i][2]),
                                    factor(held[i][3])};
                store_shared_floats(&tile[t][row], x);
            }
        }
    }

private:
    __device__ inline void fetch(float (&x)[4], const T* p, u32 count) const {
        if (layout.wide && count >= 4) {
            load_four(p, x);
        } else {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) x[e] = e < count ? to_f32(p[e]) : 0.0f;
        }
    }
};

#if MATH == 1
struct Sums {
    float d[2][2][4] = {};

    __device__ inline void multiply(const Tile& a, const Tile& b) {
        const u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
        const u32 m = warp % 2 * 32 + g, n = warp / 2 * 16 + g;
#pragma unroll
        for (u32 k = 0; k < STEP; k += 8) {
            // The swizzles of the two halves of the eight terms.
            const u32 low = k / 4 % 8 * 4, high = (k / 4 + 1) % 8 * 4;
            u32 fa[2][4], fb[2][2];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const u32 row = m + i * 16;
                fa[i][0] = __float_as_uint(a[k + t][row ^ low]);
                fa[i][1] = __float_as_uint(a[k + t][(row + 8) ^ low]);
                fa[i][2] = __float_as_uint(a[k + 4 + t][row ^ high]);
                fa[i][3] = __float_as_uint(a[k + 4 + t][(row + 8) ^ high]);
                fb[i][0] = __float_as_uint(b[k + t][(n + i * 8) ^ low]);
                fb[i][1] = __float_as_uint(b[k + 4 + t][(n + i * 8) ^ high]);
            }
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
#pragma unroll
                for (u32 j = 0; j < 2; ++j) Mma<float>::multiply(d[i][j], fa[i], fb[j][0], fb[j][1]);
        }
    }

    // Calls f(sum, row, column) for each that this thread holds.
    template <typename F> __device__ inline void for_each(F f) const {
        const u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
#pragma unroll
            for (u32 j = 0; j < 2; ++j)
#pragma unroll
                for (u32 e = 0; e < 4; ++e)
                    f(d[i][j][e], warp % 2 * 32 + i * 16 + e / 2 * 8 + g,
                      warp / 2 * 16 + j * 8 + t * 2 + e % 2);
    }
};
#else
struct Sums {
    float d[4][4] = {};

    __device__ inline void multiply(const Tile& a, const Tile& b) {
        const u32 m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
#pragma unroll 8
        for (u32 k = 0; k < STEP; ++k) {
            const u32 swizzle = k / 4 % 8 * 4;
            float fa[4], fb[4];
            load_vector(&a[k][m ^ swizzle], fa);
            load_vector(&b[k][n ^ swizzle], fb);
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) d[i][j] = __fmaf_rn(fa[i], fb[j], d[i][j]);
        }
    }

    template <typename F> __device__ inline void for_each(F f) const {
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
#pragma unroll
            for (u32 j = 0; j < 4; ++j) f(d[i][j], threadIdx.x / 16 * 4 + i, threadIdx.x % 16 * 4 + j);
    }
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    matmul(const Storage<LEFT>::type* __restrict__ a, const Storage<RIGHT>::type* __restrict__ b,
           Storage<RESULT>::type* __restrict__ y, const Params p) {
    __shared__ alignas(16) Tile left[2];
    __shared__ alignas(16) Tile right[2];
    const u32 row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    const u32 matrix = blockIdx.z / p.splits, split = blockIdx.z - matrix * p.splits;
    const u32 begin = split * p.split, end = min(begin + p.split, p.terms);
    Side<Storage<LEFT>::type> a_side(a, matrix, row, p.rows, p.left);
    Side<Storage<RIGHT>::type> b_side(b, matrix, column, p.columns, p.right);

    a_side.load(begin, end);
    b_side.load(begin, end);
    Sums sums;
    u32 now = 0;
    for (u32 term = begin; term < end; term += STEP, now ^= 1) {
        a_side.store(left[now]);
        b_side.store(right[now]);
        // One barrier a step: whoever stores to a buffer has passed the one behind its last products.
        __syncthreads();
        a_side.load(term + STEP, end);
        b_side.load(term + STEP, end);
        sums.multiply(left[now], right[now]);
    }
    y += (u64(split) * (gridDim.z / p.splits) + matrix) * p.rows * p.columns;
    sums.for_each([&](float sum, u32 m, u32 n) {
        if (row + m < p.rows && column + n < p.columns)
            y[u64(row + m) * p.columns + column + n] = from_f32<Storage<RESULT>::type>(sum);
    });
}
