// Tensor-core products of one warp (`mma.sync`, `ldmatrix`; sm_80), accumulated in f32: d += a * b.
//
// With g = lane / 4 and t = lane % 4, a lane holds
//   d of 16 x 8:            (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   16-bit, k = 16: a of 16 x 16, two neighbours of a row a register: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8,
//   2t+8..)
//                   b of 16 x 8 (k x n), two k a register:            (2t.., g) (2t+8.., g)
//   tf32, k = 8:    a of 16 x 8: (g, t) (g+8, t) (g, t+4) (g+8, t+4);  b of 8 x 8: (t, g) (t+4, g)
// so that `ldmatrix` of tiles stored row by row along k (a as [m][k], b as [n][k]) fills a and b of either
// kind: in bytes the two layouts are the same. Tiles stored the other way ([k][n], 16-bit) take the
// transposing load.
#pragma once
#include "common/storage.cuh"

// Loads four (two) 8 x 8 matrices of 16-bit elements, or 8 x 4 of 32-bit elements. Lane i gives the shared
// address of row i % 8 of matrix i / 8 (16 bytes, aligned); register j is this lane's pair of matrix j: row
// lane / 4, bytes 4 * (lane % 4).
__device__ inline void load_matrices(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
__device__ inline void load_matrices(u32 (&r)[2], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared)
                 : "memory");
}

// The same with each matrix of 16-bit elements transposed.
__device__ inline void load_matrices_transposed(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
__device__ inline void load_matrices_transposed(u32 (&r)[2], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared)
                 : "memory");
}

// How elements of type T are multiplied.
template <typename T> struct Mma;

template <> struct Mma<f16> {
    static constexpr int k = 16;
    __device__ static inline void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    // d = a * b.
    __device__ static inline void product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %10, %10, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
    }
};

template <> struct Mma<bf16> {
    static constexpr int k = 16;
    __device__ static inline void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    // d = a * b.
    __device__ static inline void product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, {%10, %10, %10, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
    }
};

// f32 elements as TF32. Round them with `to_tf32` first: the tensor core drops the low 13 bits.
template <> struct Mma<float> {
    static constexpr int k = 8;
    __device__ static inline void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

// The bits of a float rounded to TF32's 10 bits of mantissa, to nearest, ties away from zero.
__device__ inline u32 to_tf32(u32 bits) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(bits)));
    return y;
}
