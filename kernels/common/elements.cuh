// N neighbouring elements as floats: one, or whole chunks of 16 bytes (then the address must be a multiple of
// 16).
#pragma once
#include "common/vector.cuh"

template <int N, typename T> __device__ inline void load_elements(const T* p, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = to_f32(*p);
    } else {
        constexpr int lanes = Lanes<T>::count;
        static_assert(N % lanes == 0, "whole chunks");
#pragma unroll
        for (int i = 0; i < N; i += lanes) {
            float chunk[lanes];
            load_vector(p + i, chunk);
#pragma unroll
            for (int j = 0; j < lanes; ++j) x[i + j] = chunk[j];
        }
    }
}

// NVRTC takes some stores through pointers to 16 bytes apart into four; these stay whole.
__device__ inline void store_global_chunk(void* p, const Chunk& chunk) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                 "r"(chunk.word[0]), "r"(chunk.word[1]), "r"(chunk.word[2]), "r"(chunk.word[3])
                 : "memory");
}
template <int N> __device__ inline void store_shared_floats(float* p, const float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_shared(p + i)),
                     "f"(x[i]), "f"(x[i + 1]), "f"(x[i + 2]), "f"(x[i + 3])
                     : "memory");
    }
}

// To device memory.
template <int N, typename T> __device__ inline void store_elements(T* p, const float (&x)[N]) {
    if constexpr (N == 1) {
        *p = from_f32<T>(x[0]);
    } else {
        constexpr int lanes = Lanes<T>::count;
        static_assert(N % lanes == 0, "whole chunks");
#pragma unroll
        for (int i = 0; i < N; i += lanes) {
            float chunk[lanes];
#pragma unroll
            for (int j = 0; j < lanes; ++j) chunk[j] = x[i + j];
            store_global_chunk(p + i, pack(chunk, T{}));
        }
    }
}
