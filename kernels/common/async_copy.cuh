// Copies from global to shared memory that run behind the arithmetic (`cp.async`, sm_80).
//
// Every copy can be replaced by zeros (`take` false): nothing is read then, so the address may lie outside
// the tensor. That is how halos and ragged ends of tiles are made. A thread's copies up to `commit_copies`
// are one group; `wait_copies<n>` waits until at most the n newest groups of the calling thread are under
// way. Other threads see the data after a barrier that follows the wait.
#pragma once
#include "common/storage.cuh"

// The 32-bit address that shared-memory instructions take.
__device__ inline u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }

// Moves 4, 8 or 16 bytes, both addresses aligned to it. 16 bytes pass by the L1 cache.
template <int bytes> __device__ inline void copy_async(u32 shared, const void* global, bool take) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async moves 4, 8 or 16 bytes");
    const u32 read = take ? bytes : 0;
    if (bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(read)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(bytes),
                     "r"(read)
                     : "memory");
    }
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> __device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
