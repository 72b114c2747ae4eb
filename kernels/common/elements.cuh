// N neighbouring elements as floats: one, or whole chunks of 16 bytes (then the address must be a multiple of 16).
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
            store_vector(p + i, chunk);
        }
    }
}
