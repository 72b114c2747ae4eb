// Sixteen bytes of neighbouring elements as floats: eight of a 16-bit type, four of f32. Addresses must be
// multiples of
// 16.
#pragma once
#include "common/storage.cuh"

struct alignas(16) Chunk { u32 word[4]; };

// Elements of a chunk.
template <typename T> struct Lanes { static constexpr int count = 16 / int(sizeof(T)); };

__device__ inline Chunk load_chunk(const void* p) { return *reinterpret_cast<const Chunk*>(p); }
__device__ inline void store_chunk(void* p, const Chunk& chunk) { *reinterpret_cast<Chunk*>(p) = chunk; }

// To and from 32-bit addresses of shared memory. NVRTC may take accesses through pointers apart; these stay
// whole.
__device__ inline void store_shared_pair(u32 shared, float left, float right) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(left), "f"(right) : "memory");
}
__device__ inline void load_shared_floats(float (&x)[4], u32 shared) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
                 : "r"(shared)
                 : "memory");
}

__device__ inline void unpack(const Chunk& chunk, float (&x)[4], float) {
    for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(chunk.word[i]);
}
__device__ inline void unpack(const Chunk& chunk, float (&x)[8], f16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = to_f32(f16{u16(chunk.word[i])});
        x[2 * i + 1] = to_f32(f16{u16(chunk.word[i] >> 16)});
    }
}
__device__ inline void unpack(const Chunk& chunk, float (&x)[8], bf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = __uint_as_float(chunk.word[i] << 16);
        x[2 * i + 1] = __uint_as_float(chunk.word[i] & 0xffff0000u);
    }
}

// Two floats rounded to 16-bit elements, `low` at the lower address.
__device__ inline u32 pack2(float low, float high, f16) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ inline u32 pack2(float low, float high, bf16) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// And back.
__device__ inline float2 unpack2(u32 pair, f16) {
    float2 y;
    asm("{.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\tcvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;}"
        : "=f"(y.x), "=f"(y.y)
        : "r"(pair));
    return y;
}
__device__ inline float2 unpack2(u32 pair, bf16) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ inline Chunk pack(const float (&x)[4], float) {
    return Chunk{
        {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])}};
}
template <typename T> __device__ inline Chunk pack(const float (&x)[8], T type) {
    return Chunk{
        {pack2(x[0], x[1], type), pack2(x[2], x[3], type), pack2(x[4], x[5], type), pack2(x[6], x[7], type)}};
}

// The elements at `p` as floats, and floats rounded to them.
template <typename T> __device__ inline void load_vector(const T* p, float (&x)[Lanes<T>::count]) {
    unpack(load_chunk(p), x, T{});
}
template <typename T> __device__ inline void store_vector(T* p, const float (&x)[Lanes<T>::count]) {
    store_chunk(p, pack(x, T{}));
}

// A chunk to a 32-bit address of shared memory, whole.
__device__ inline void store_shared_chunk(u32 shared, const Chunk& chunk) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(chunk.word[0]),
                 "r"(chunk.word[1]), "r"(chunk.word[2]), "r"(chunk.word[3])
                 : "memory");
}

// Chunks that are only read, by 64-bit addresses of device memory: of element `index` from `base`, in one
// instruction, and `offset` bytes behind an address.
template <typename T> __device__ inline u64 global_address(const T* base) {
    return u64(__cvta_generic_to_global(base));
}
template <typename T> __device__ inline u64 element_address(u64 base, u32 index, T) {
    u64 address;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(index), "n"(sizeof(T)), "l"(base));
    return address;
}
template <int offset> __device__ inline Chunk load_read_only(u64 address) {
    Chunk chunk;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4+%5];"
        : "=r"(chunk.word[0]), "=r"(chunk.word[1]), "=r"(chunk.word[2]), "=r"(chunk.word[3])
        : "l"(address), "n"(offset));
    return chunk;
}

// Shared memory, `offset` bytes behind an address.
template <int offset> __device__ inline Chunk load_shared_chunk(u32 shared) {
    Chunk chunk;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4+%5];"
                 : "=r"(chunk.word[0]), "=r"(chunk.word[1]), "=r"(chunk.word[2]), "=r"(chunk.word[3])
                 : "r"(shared), "n"(offset)
                 : "memory");
    return chunk;
}

// Keeps the compiler from making a number anew wherever it is used.
__device__ inline void keep(u32& x) { asm volatile("" : "+r"(x)); }
__device__ inline void keep(float& x) { asm volatile("" : "+f"(x)); }

// Words of shared memory, by 32-bit addresses.
__device__ inline void store_shared_word(u32 shared, u32 word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(word) : "memory");
}
__device__ inline u32 load_shared_word(u32 shared) {
    u32 word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(shared) : "memory");
    return word;
}
__device__ inline void load_shared_words(u32 (&word)[2], u32 shared) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "r"(shared) : "memory");
}

// The 16-bit elements in the lower halves of two words, and those in the upper ones.
__device__ inline u32 lower_halves(u32 first, u32 second) { return __byte_perm(first, second, 0x5410); }
__device__ inline u32 upper_halves(u32 first, u32 second) { return __byte_perm(first, second, 0x7632); }
