// N neighbouring elements as floats: one, half a chunk of 16 bytes (then the address must be a multiple of
// 8), or whole chunks (of 16).
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

// Half a chunk: four elements of a 16-bit type.
template <typename T> __device__ inline void load_half(const T* p, float (&x)[4]) {
    const uint2 half = *reinterpret_cast<const uint2*>(p);
    const float2 low = unpack2(half.x, T{}), high = unpack2(half.y, T{});
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
}
template <> __device__ inline void load_elements<4>(const f16* p, float (&x)[4]) { load_half(p, x); }
template <> __device__ inline void load_elements<4>(const bf16* p, float (&x)[4]) { load_half(p, x); }

template <typename T> __device__ inline void store_half(T* p, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack2(x[0], x[1], T{}), pack2(x[2], x[3], T{}));
}
template <> __device__ inline void store_elements<4>(f16* p, const float (&x)[4]) { store_half(p, x); }
template <> __device__ inline void store_elements<4>(bf16* p, const float (&x)[4]) { store_half(p, x); }
