// As elements.cuh, of four elements of any type: 16 bytes of f32, or half a chunk of a 16-bit type, whose
// address must be a multiple of 8.
#pragma once
#include "common/elements.cuh"

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
