// Runs a CUDA C++ kernel on the CPU: every thread of a block is a fiber, switched at each barrier
// and shuffle. Enough of the language for remamba/ops/*.cu; what the kernels write in PTX is given
// here in C++.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct Index {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
struct uint4 {
    unsigned x, y, z, w;
};
static Index threadIdx, blockIdx, gridDim;
static unsigned char* emulated_shared;
#define DYNAMIC_SHARED(name) unsigned char* name = emulated_shared

static inline float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float ex2(float x) { return exp2f(x); }
static inline float lg2(float x) { return log2f(x); }
static inline float rcp(float x) { return 1.0f / x; }
static inline float half_to_float(unsigned short x) {
    const int exponent = x >> 10 & 31, digits = x & 1023;
    float value = exponent == 31 ? (digits ? NAN : INFINITY)
                                 : ldexpf(exponent ? digits + 1024 : digits, (exponent ? exponent : 1) - 25);
    return x >> 15 ? -value : value;
}
static inline unsigned short float_to_half(float x) {
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    x = fabsf(x);
    if (x != x) return sign | 0x7e00;
    if (x >= 65520.0f) return sign | 0x7c00;
    const int exponent = x < 0x1p-14f ? -14 : ilogbf(x);
    // the digits, rounded to even; 1,024 of them carry into the exponent
    return sign | (unsigned short)((exponent + 14) * 1024 + (int)nearbyintf(ldexpf(x, 10 - exponent)));
}
static inline unsigned short float_to_bfloat(float x) {
    unsigned u;
    memcpy(&u, &x, 4);
    return (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// a copy is done at the wait, as late as the GPU may do it
struct Copy {
    void* to;
    const void* from;
    bool inside;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    std::vector<Copy> copies;
    int block_barriers, warp_barriers;
    bool done;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int current;
static float exchanged[2048], operands[2048][6];

static inline void copy_async(void* to, const void* from, bool inside) {
    fibers[current].copies.push_back({to, from, inside});
}
static inline void copies_end() {}
static inline void copies_wait() {
    for (Copy& c : fibers[current].copies) {
        if (c.inside)
            memcpy(c.to, c.from, 16);
        else
            memset(c.to, 0, 16);
    }
    fibers[current].copies.clear();
}
static inline void yield_() { swapcontext(&fibers[current].context, &scheduler); }

// a barrier is passed once no thread of the group is behind in the count of barriers
static inline void wait_for(int first, int last, int Fiber::* count) {
    const int mine = ++(fibers[current].*count);
    for (;;) {
        bool ready = true;
        for (int i = first; i < last; i++) ready &= fibers[i].done || fibers[i].*count >= mine;
        if (ready) return;
        yield_();
    }
}
static inline void __syncthreads() { wait_for(0, (int)fibers.size(), &Fiber::block_barriers); }
static inline void __syncwarp() {
    const int warp = current / 32 * 32;
    wait_for(warp, warp + 32, &Fiber::warp_barriers);
}
static inline float __shfl_xor_sync(unsigned, float value, int mask) {
    exchanged[current] = value;
    __syncwarp();
    const float other = exchanged[current ^ mask];
    __syncwarp();
    return other;
}
static inline int __any_sync(unsigned, bool predicate) {
    exchanged[current] = predicate;
    __syncwarp();
    bool any = false;
    for (int i = current / 32 * 32; i < current / 32 * 32 + 32; i++) any |= exchanged[i] != 0.0f;
    __syncwarp();
    return any;
}

// a barrier that only some wait for: arrivals wanted, arrivals so far, phases completed
typedef unsigned long long Barrier;
static inline void barrier_init(Barrier* barrier, int arrivals) { *barrier = (Barrier)arrivals << 48; }
static inline void barrier_arrive(Barrier* barrier) {
    *barrier += (Barrier)1 << 32;
    if ((*barrier >> 32 & 0xffff) == *barrier >> 48) *barrier = (*barrier & ((Barrier)0xffff << 48)) | ((unsigned)*barrier + 1);
}
static inline void barrier_wait(Barrier* barrier, int phase) {
    while ((int)(unsigned)*barrier <= phase) yield_();
}

// lane 4 s + c holds of A rows s and s + 8, of B column s, in places c and c + 4; tf32 drops 13 bits
static inline void multiply_add(float (&d)[4], float a0, float a1, float a2, float a3, float b0,
                                float b1) {
    const int warp = current / 32 * 32, s = current % 32 / 4, c = current % 4;
    const float mine[6] = {a0, a1, a2, a3, b0, b1};
    for (int i = 0; i < 6; i++)
        operands[current][i] = __uint_as_float(__float_as_uint(mine[i]) & 0xffffe000u);
    __syncwarp();
    for (int high = 0; high < 2; high++)
        for (int column = 0; column < 2; column++)
            for (int k = 0; k < 8; k++)
                d[2 * high + column] += operands[warp + 4 * s + k % 4][high + 2 * (k / 4)] *
                                        operands[warp + 4 * (2 * c + column) + k % 4][4 + k / 4];
    __syncwarp();
}

template <class Kernel, class Arguments>
static void launch(Kernel kernel, unsigned grid_x, unsigned grid_y, int threads, size_t shared,
                   const Arguments& arguments) {
    static Kernel kernel_;
    static const Arguments* arguments_;
    kernel_ = kernel;
    arguments_ = &arguments;
    gridDim = {grid_x, grid_y, 1};
    std::vector<unsigned char> memory(shared + 16);
    for (unsigned y = 0; y < grid_y; y++)
        for (unsigned x = 0; x < grid_x; x++) {
            blockIdx = {x, y, 0};
            // NaN, so that a value read before it is written shows
            memset(memory.data(), 0xff, memory.size());
            emulated_shared = (unsigned char*)(((uintptr_t)memory.data() + 15) & ~(uintptr_t)15);
            fibers.assign(threads, Fiber());
            for (int i = 0; i < threads; i++) {
                Fiber& fiber = fibers[i];
                fiber.stack.resize(1 << 16);
                fiber.block_barriers = fiber.warp_barriers = 0;
                fiber.done = false;
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = fiber.stack.data();
                fiber.context.uc_stack.ss_size = fiber.stack.size();
                fiber.context.uc_link = &scheduler;
                makecontext(
                    &fiber.context,
                    (void (*)())(+[]() {
                        kernel_(*arguments_);
                        fibers[current].done = true;
                    }),
                    0);
            }
            for (bool busy = true; busy;) {
                busy = false;
                for (int i = 0; i < threads; i++) {
                    if (fibers[i].done) continue;
                    busy = true;
                    current = i;
                    threadIdx = {(unsigned)i, 0, 0};
                    swapcontext(&scheduler, &fibers[i].context);
                }
            }
        }
}
