// The selective scan of Mamba and its gradients, compiled at run time by NVRTC (selective_scan_cuda.py).
//
// A warp owns 32 / LANES channels. Of a channel's N states each of LANES lanes holds N / LANES, so that
// every step of the recurrence is done once, in registers, and one pass over the sequence is enough:
//     lane = CHANNELS_A_WARP * s + c,   c: channel of the warp,   s: group of states
// Steps go in blocks of LANES, and lane (s, c) also looks after step s of a block: before the block it
// computes the time step; after it, the partial sums of y are added across the lanes of a channel so
// that lane (s, c) is left with the y of step s.
// Rows arrive in shared memory by asynchronous copies of 16 bytes, a tile of TILE steps ahead.
//
// Defined from outside: TYPE (0 float, 1 bfloat16, 2 half), N, LANES (8 in the backward kernel), WARPS,
// TILE, KEEP (steps between the states kept for the gradient; TILE in the backward kernel), HAS_Z, HAS_D,
// HAS_BIAS, HAS_SCALE, PARAM (TYPE of D and dt_bias).

#define SPT (N / LANES)
#define CHANNELS_A_WARP (32 / LANES)
#define CHANNELS (CHANNELS_A_WARP * WARPS)
#define BLOCK LANES
#define THREADS (32 * WARPS)
#define FULL 0xffffffffu
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

#if TYPE == 0
typedef float T;
#else
typedef unsigned short T;
#endif
#if PARAM == 0
typedef float P;
#else
typedef unsigned short P;
#endif
typedef long long i64;

#ifndef EMULATED
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float lg2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float half_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ unsigned short float_to_half(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ unsigned short float_to_bfloat(float x) {
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
// 16 bytes to shared memory; zeros where the source is outside
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;"); }
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group 0;"); }
// a barrier in shared memory of which one side only waits: `arrivals` complete a phase
typedef unsigned long long Barrier;
__device__ __forceinline__ unsigned address_of(Barrier* barrier) {
    return (unsigned)__cvta_generic_to_shared(barrier);
}
__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(arrivals));
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
    asm volatile("{ .reg .b64 phase; mbarrier.arrive.shared.b64 phase, [%0]; }" ::"r"(address_of(barrier))
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int phase) {
    unsigned done = 0;
    while (!done)
        asm volatile(
            "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(address_of(barrier)), "r"(phase & 1)
            : "memory");
}
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

__device__ __forceinline__ float get(float x) { return x; }
template <int kind>
__device__ __forceinline__ float widen(unsigned short x) {
    return kind == 2 ? half_to_float(x) : __uint_as_float((unsigned)x << 16);
}
__device__ __forceinline__ float get(unsigned short x) { return widen<TYPE == 0 ? PARAM : TYPE>(x); }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(unsigned short* to, float x) {
    *to = TYPE == 2 ? float_to_half(x) : float_to_bfloat(x);
}

struct StepSize {
    float value;  // softplus(raw)
    float slope;  // its derivative, the sigmoid of raw
};

// lg2.approx errs by 2^-22 absolutely, so small values take the series of log1p instead
__device__ __forceinline__ StepSize softplus(float raw) {
    float e = ex2(fminf(raw, 20.0f) * LOG2_E);
    float inverse = rcp(1.0f + e);
    float s = e * rcp(2.0f + e), s2 = s * s;
    float series = 2.0f * s * (1.0f + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9)))));
    float value = e < 0.5f ? series : lg2(1.0f + e) * LN_2;
    return {raw > 20.0f ? raw : value, raw > 20.0f ? 1.0f : e * inverse};
}
__device__ __forceinline__ float sigmoid(float x) { return rcp(1.0f + ex2(-x * LOG2_E)); }

// v[j] of every lane summed over the lanes of a channel; lane s is left with that of j = s
template <int width>
__device__ __forceinline__ float sum_halves(const float (&v)[2 * width], int s) {
    float half[width];
#pragma unroll
    for (int j = 0; j < width; j++) {
        const float mine = s & width ? v[j + width] : v[j], other = s & width ? v[j] : v[j + width];
        half[j] = mine + __shfl_xor_sync(FULL, other, width * CHANNELS_A_WARP);
    }
    if constexpr (width == 1)
        return half[0];
    else
        return sum_halves<width / 2>(half, s);
}
__device__ __forceinline__ float sum_over_states(const float (&v)[BLOCK], int s) { return sum_halves<BLOCK / 2>(v, s); }

struct __align__(SPT == 1 ? 8 : 16) Pair {  // B and C of a lane's states at one step
    float b[SPT], c[SPT];
};

struct Arguments {
    const T *x, *dt, *z, *B, *C, *dy;
    const float* A;
    const P *D, *bias;
    const float *scale, *first;       // (b, l), (b, e, n)
    T* y;                             // written forward, read backward
    float *last, *starts;             // (b, e, n), (b, tiles, e, n): null when not wanted
    const float* dlast;               // backward
    T *dx, *ddt, *dz;
    float *dA, *dD, *dbias, *dfirst;  // (b, e, n), (b, e), (b, e), (b, e, n)
    float* dBC;                       // (b, channel blocks, l, 2, n / 8, 8), state 8 of n last
    i64 x_row, x_step, dt_row, dt_step, z_row, z_step, B_row, B_step, C_row, C_step, dy_row, dy_step;
    int length, channels;
};

#define PER_COPY (16 / (int)sizeof(T))

// A thread's place in a tile of rows: 16 bytes of step t, from channel k of the block on. The first
// half of a block's threads copies x, z and y, the second dt and dy.
struct Place {
    bool mine, second;
    int t, k, at;  // at: in the tile
    __device__ __forceinline__ Place(int width) {
        const int half = THREADS / 2, copies = CHANNELS / PER_COPY;
        static_assert(CHANNELS % PER_COPY == 0 && TILE * copies <= half, "one copy a thread");
        second = threadIdx.x >= half;
        const int i = threadIdx.x - (second ? half : 0);
        t = i / copies;
        k = i % copies * PER_COPY;
        at = t * CHANNELS + k;
        mine = TILE * copies == half || t < TILE;
        if (!mine || k >= width) t = 1 << 30;  // outside
    }
};

// what a thread copies from one tensor: `from` moves from tile to tile
struct Rows {
    const T* from;
    i64 stride;  // between tiles
    __device__ __forceinline__ Rows(const T* rows, i64 step, const Place& place, int first_tile) {
        from = rows + (first_tile * TILE + place.t) * step + place.k;
        stride = TILE * step;
    }
    __device__ __forceinline__ void load(T* tile, const Place& place, int left) const {
        if (place.mine) copy_async(tile + place.at, from, place.t < left);
    }
};
__device__ __forceinline__ void pack_states(Pair* to, const T* B, const T* C) {
#pragma unroll 1
    for (int i = threadIdx.x; i < TILE * LANES; i += THREADS) {
        Pair pair;
#pragma unroll
        for (int k = 0; k < SPT; k++) {
            pair.b[k] = get(B[i * SPT + k]);
            pair.c[k] = get(C[i * SPT + k]);
        }
        to[i] = pair;
    }
}

struct __align__(16) Tile {  // what a tile of steps brings; its results take the places of x, dt and z
    T x[TILE * CHANNELS], dt[TILE * CHANNELS], z[HAS_Z ? TILE * CHANNELS : 8];
    T B[TILE * N], C[TILE * N];
};
struct __align__(16) TileBack : Tile {
    T dy[TILE * CHANNELS], y[HAS_Z ? TILE * CHANNELS : 8];
};

// B and C of a tile; left: how many of its steps there are
__device__ __forceinline__ void load_states(Tile& tile, const Arguments& a, int b, i64 begin, int left) {
    const int copies = N / PER_COPY;
#pragma unroll 1
    for (int i = threadIdx.x; i < 2 * TILE * copies; i += THREADS) {
        const bool is_C = i >= TILE * copies;
        const int m = is_C ? i - TILE * copies : i, t = m / copies, k = m % copies * PER_COPY;
        const T* from = is_C ? a.C + b * a.C_row + (begin + t) * a.C_step : a.B + b * a.B_row + (begin + t) * a.B_step;
        copy_async((is_C ? tile.C : tile.B) + m * PER_COPY, from + k, t < left);
    }
}

struct Step {
    float dt, du;  // Delta, Delta * x
};

#define STAGES 5
struct __align__(16) ForwardShared {
    Tile tiles[STAGES];
    Pair pairs[2][TILE * LANES];
    Step steps[2][WARPS][CHANNELS_A_WARP][BLOCK + 2];  // 2 more keep the channels in different banks
};

// Of block n the time steps are computed beside the recurrence of block n - 1, and the outputs
// beside that of block n + 1: three independent streams of instructions hide each other's waits.
extern "C" __global__ void __launch_bounds__(THREADS, 1) scan_forward(const Arguments a) {
    DYNAMIC_SHARED(memory);
    ForwardShared& shared = *(ForwardShared*)memory;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % CHANNELS_A_WARP, s = lane / CHANNELS_A_WARP;
    const int b = blockIdx.y, first_channel = blockIdx.x * CHANNELS;
    const int local = warp * CHANNELS_A_WARP + c, channel = first_channel + local;
    const bool inside = channel < a.channels;
    const int tiles = (a.length + TILE - 1) / TILE;
    const i64 state = ((i64)b * a.channels + channel) * N + s * SPT;

    const int parts = (a.length + KEEP - 1) / KEEP;
    float h[SPT], A[SPT], sums[BLOCK];
#pragma unroll
    for (int j = 0; j < BLOCK; j++) sums[j] = 0.0f;
#pragma unroll
    for (int k = 0; k < SPT; k++) {
        h[k] = inside && a.first ? a.first[state + k] : 0.0f;
        A[k] = inside ? a.A[(i64)channel * N + s * SPT + k] * LOG2_E : 0.0f;
    }
    const float skip = HAS_D && inside ? get(a.D[channel]) : 0.0f;
    const float bias = HAS_BIAS && inside ? get(a.bias[channel]) : 0.0f;

    const Place place(a.channels - first_channel);
    Rows first(place.second ? a.dt + b * a.dt_row + first_channel : a.x + b * a.x_row + first_channel,
               place.second ? a.dt_step : a.x_step, place, 0);
    Rows gate(a.z + b * a.z_row + first_channel, a.z_step, place, 0);
    auto load = [&](int i) {
        Tile& tile = shared.tiles[i % STAGES];
        const int left = a.length - i * TILE;
        first.load(place.second ? tile.dt : tile.x, place, left);
        first.from += first.stride;
        if (HAS_Z && !place.second) gate.load(tile.z, place, left);
        gate.from += gate.stride;
        load_states(tile, a, b, i * TILE, left);
    };
    T* out = a.y + ((i64)b * a.length + place.t) * a.channels + first_channel + place.k;
    auto store = [&](int i) {
        if (!place.second && place.t < a.length - i * TILE)
            *(uint4*)out = *(const uint4*)(shared.tiles[i % STAGES].x + place.at);
        out += TILE * (i64)a.channels;
    };
    auto step_of = [&](const Tile& tile, int begin, int t) -> Step {
        const int own = t * CHANNELS + local;
        float dt = softplus(get(tile.dt[own]) + bias).value;
        if (HAS_SCALE) dt *= begin + t < a.length ? a.scale[(i64)b * a.length + begin + t] : 0.0f;
        if (begin + t >= a.length) dt = 0.0f;
        return {dt, dt * get(tile.x[own])};
    };
    auto finish = [&](Tile& tile, int t) {
        const int own = t * CHANNELS + local;
        float y = sum_over_states(sums, s) + skip * get(tile.x[own]);
        if (HAS_Z) {
            const float z = get(tile.z[own]);
            y *= z * sigmoid(z);
        }
        put(&tile.x[own], y);
    };

    load(0);
    copies_end();
    copies_wait();
    __syncthreads();
    pack_states(shared.pairs[0], shared.tiles[0].B, shared.tiles[0].C);
    if (tiles > 1) load(1);
    copies_end();
    shared.steps[0][warp][c][s] = step_of(shared.tiles[0], 0, s);

    for (int i = 0; i < tiles; i++) {
        copies_wait();
        __syncthreads();
        const int begin = i * TILE;
        if (i + 2 < tiles) load(i + 2);
        copies_end();
        Tile& tile = shared.tiles[i % STAGES];
        Tile& next = shared.tiles[(i + 1) % STAGES];
        Tile& last = shared.tiles[(i + STAGES - 1) % STAGES];
        if (i + 1 < tiles) pack_states(shared.pairs[(i + 1) % 2], next.B, next.C);
        if (i > 1) store(i - 2);
        const Pair* pairs = shared.pairs[i % 2] + s;

#pragma unroll
        for (int t0 = 0; t0 < TILE; t0 += BLOCK) {
            const int parity = (i * (TILE / BLOCK) + t0 / BLOCK) % 2;
            if (a.starts && inside && t0 % KEEP == 0 && begin + t0 < a.length) {
                const i64 part = (i64)b * parts + (begin + t0) / KEEP;
                float* start = a.starts + (part * a.channels + channel) * N + s * SPT;
#pragma unroll
                for (int k = 0; k < SPT; k++) start[k] = h[k];
            }
            const bool is_first = t0 == 0, is_last = t0 + BLOCK == TILE;
            __syncwarp();
            const Step ahead = step_of(is_last ? next : tile, is_last ? begin + TILE : begin,
                                       is_last ? s : t0 + BLOCK + s);
            // the very first writes to a tile that nothing has been loaded to
            finish(is_first ? last : tile, (is_first ? TILE : t0) - BLOCK + s);
            const Step* steps = shared.steps[parity][warp][c];
#pragma unroll
            for (int j = 0; j < BLOCK; j += 2) {
                const float4 two = *(const float4*)(steps + j);
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const float step = m ? two.z : two.x, input = m ? two.w : two.y;
                    const Pair pair = pairs[(t0 + j + m) * LANES];
                    float sum = 0.0f;
#pragma unroll
                    for (int k = 0; k < SPT; k++) {
                        h[k] = ex2(step * A[k]) * h[k] + input * pair.b[k];
                        sum += h[k] * pair.c[k];
                    }
                    sums[j + m] = sum;
                }
            }
            shared.steps[parity ^ 1][warp][c][s] = ahead;
        }
    }
    finish(shared.tiles[(tiles - 1) % STAGES], TILE - BLOCK + s);
    __syncthreads();
    if (tiles > 1) store(tiles - 2);
    store(tiles - 1);
    if (inside) {
#pragma unroll
        for (int k = 0; k < SPT; k++) a.last[state + k] = h[k];
    }
}

#if LANES == 8
struct __align__(16) StepBack {
    float dt, du, g, slope;  // Delta, Delta * x, gradient of y before the gate, that of Delta in raw dt
};
#define VALUES (2 * SPT)        // of dB and dC, a lane and step
#define GROUP (16 / VALUES)     // steps whose values make up a 16 x 8 matrix
// a gate of 0 leaves nothing of y to be read back, and one of half precision too few digits
#define GATE_LOSES(z) (TYPE == 2 || fabsf(z) < 1e-30f)
struct __align__(16) BackwardShared {
    TileBack tiles[2];
    Pair pairs[TILE * 8];
    StepBack steps[WARPS][4][TILE + 1];
    float starts[WARPS][TILE / BLOCK][SPT][32];     // states before each block
    float slopes[HAS_Z ? WARPS : 1][TILE / BLOCK][32];  // of the gates that have lost y
    float sums[2][WARPS][BLOCK][VALUES][8];         // dB and dC of each warp's 4 channels
    Barrier full[2], free[2];                       // sums: all warps have written; they are added up
};
#define ITEMS (BLOCK * VALUES * 8 / 4)                        // of 4 sums
#define SUMMERS (ITEMS / 32 < WARPS ? ITEMS / 32 : WARPS)     // warps that add up a block's sums

// D (16 x 8) += A (16 x 8) B (8 x 8) of tf32, by the tensor cores; lane 4 s + c holds D's rows s and
// s + 8 in columns 2 c and 2 c + 1, and of B column s in rows c and c + 4
#ifndef EMULATED
__device__ __forceinline__ void multiply_add(float (&d)[4], float a0, float a1, float a2, float a3, float b0,
                                             float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
#endif
// Rows v and v + 1 (v even, below 8) of d become the sums of p and q over a warp's 4 channels. tf32 keeps
// 10 bits of a mantissa, more than bfloat16 inputs have; of float32 ones the rest is added as a second
// value. is[i] is 1 where i = s, else 0.
__device__ __forceinline__ void sum_over_channels(float (&d)[4], int v, float p, float q, const float (&is)[8]) {
#if TYPE == 0
    const float p_high = __uint_as_float(__float_as_uint(p) & 0xffffe000u);
    const float q_high = __uint_as_float(__float_as_uint(q) & 0xffffe000u);
    multiply_add(d, is[v], 0.0f, is[v], 0.0f, p_high, p - p_high);
    multiply_add(d, is[v + 1], 0.0f, is[v + 1], 0.0f, q_high, q - q_high);
#else
    multiply_add(d, is[v], 0.0f, is[v + 1], 0.0f, p, q);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) scan_backward(const Arguments a) {
    DYNAMIC_SHARED(memory);
    BackwardShared& shared = *(BackwardShared*)memory;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane & 3, s = lane >> 2;
    const int b = blockIdx.y, first_channel = blockIdx.x * CHANNELS;
    const int local = warp * 4 + c, channel = first_channel + local;
    const bool inside = channel < a.channels;
    const int tiles = (a.length + TILE - 1) / TILE;
    const i64 state = ((i64)b * a.channels + channel) * N + s * SPT;
    const i64 rows = (i64)b * a.length;

    float A[SPT], A_log2[SPT], dA[SPT], carry[SPT];  // carry: adjoint of the state that a step starts from
#pragma unroll
    for (int k = 0; k < SPT; k++) {
        A[k] = inside ? a.A[(i64)channel * N + s * SPT + k] : 0.0f;
        A_log2[k] = A[k] * LOG2_E;
        carry[k] = inside && a.dlast ? a.dlast[state + k] : 0.0f;
        dA[k] = 0.0f;
    }
    float is[8];
#pragma unroll
    for (int i = 0; i < 8; i++) is[i] = i == s ? 1.0f : 0.0f;
    const float skip = HAS_D && inside ? get(a.D[channel]) : 0.0f;
    const float bias = HAS_BIAS && inside ? get(a.bias[channel]) : 0.0f;
    float dskip = 0.0f, dbias = 0.0f;
    StepBack(&steps)[4][TILE + 1] = shared.steps[warp];
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; i++) {
            barrier_init(&shared.full[i], WARPS);
            barrier_init(&shared.free[i], SUMMERS);
        }

    const Place place(a.channels - first_channel);
    Rows first(place.second ? a.dt + b * a.dt_row + first_channel : a.x + b * a.x_row + first_channel,
               place.second ? a.dt_step : a.x_step, place, tiles - 1);
    Rows gate(place.second ? a.dy + b * a.dy_row + first_channel : a.z + b * a.z_row + first_channel,
              place.second ? a.dy_step : a.z_step, place, tiles - 1);
    Rows outputs(a.y + rows * a.channels + first_channel, a.channels, place, tiles - 1);
    auto load = [&](int i) {
        TileBack& tile = shared.tiles[i % 2];
        const int left = a.length - i * TILE;
        first.load(place.second ? tile.dt : tile.x, place, left);
        first.from -= first.stride;
        if (HAS_Z || place.second) gate.load(place.second ? tile.dy : tile.z, place, left);
        gate.from -= gate.stride;
        if (HAS_Z && !place.second) outputs.load(tile.y, place, left);
        outputs.from -= outputs.stride;
        load_states(tile, a, b, i * TILE, left);
    };
    i64 output = (rows + (tiles - 1) * TILE + place.t) * a.channels + first_channel + place.k;
    auto store = [&](int i) {
        TileBack& tile = shared.tiles[i % 2];
        if (place.t < a.length - i * TILE) {
            *(uint4*)((place.second ? a.ddt : a.dx) + output) =
                *(const uint4*)((place.second ? tile.dt : tile.x) + place.at);
            if (HAS_Z && !place.second) *(uint4*)(a.dz + output) = *(const uint4*)(tile.z + place.at);
        }
        output -= TILE * (i64)a.channels;
    };
    // The warps take turns in adding up what all wrote of a block (the sequence's last is 0), one
    // block later, so that they wait for nobody.
    float* dBC = a.dBC + (((i64)b * gridDim.x + blockIdx.x) * a.length) * (VALUES * 8);
    int block = 0, turn = 0;  // turn: the first warp to add up the next block
    auto add_up = [&](int n) {
        int rank = warp - turn;
        if (rank < 0) rank += WARPS;
        turn = turn + SUMMERS < WARPS ? turn + SUMMERS : turn + SUMMERS - WARPS;
        if (rank >= SUMMERS) return;
        barrier_wait(&shared.full[n % 2], n / 2);
        const int begin = tiles * TILE - (n + 1) * BLOCK;
#pragma unroll 1
        for (int item = rank * 32 + lane; item < ITEMS; item += SUMMERS * 32) {
            const int t = begin + item / (VALUES * 2);
            const float4* from = (const float4*)&shared.sums[n % 2][0][0][0][0] + item;
            float4 sum = from[0];
#pragma unroll
            for (int w = 1; w < WARPS; w++) {
                const float4 more = from[w * ITEMS];
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            if (t < a.length) ((float4*)(dBC + (i64)t * (VALUES * 8)))[item % (VALUES * 2)] = sum;
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.free[n % 2]);
    };
    // the states before tile i - 1 are asked for while tile i is worked on
    float start[SPT];
    auto ask = [&](int i) {
#pragma unroll
        for (int k = 0; k < SPT; k++)
            start[k] = inside ? a.starts[(((i64)b * tiles + i) * a.channels + channel) * N + s * SPT + k] : 0.0f;
    };
    ask(tiles - 1);
    load(tiles - 1);
    copies_end();

    for (int i = tiles - 1; i >= 0; i--) {
        copies_wait();
        __syncthreads();
        const int begin = i * TILE;
        TileBack& tile = shared.tiles[i % 2];
        if (i + 1 < tiles) store(i + 1);
        pack_states(shared.pairs, tile.B, tile.C);
        __syncthreads();
        if (i > 0) load(i - 1);
        copies_end();
        const Pair* pairs = shared.pairs + s;

        // forward once more, for the states before each block
        float h[SPT];
#pragma unroll
        for (int k = 0; k < SPT; k++) h[k] = start[k];
        if (i > 0) ask(i - 1);
        unsigned lost = 0;  // the blocks in which a gate has lost y
#pragma unroll
        for (int t0 = 0; t0 < TILE; t0 += BLOCK) {
            const int t = t0 + s, own = t * CHANNELS + local;
            float scale = begin + t < a.length ? 1.0f : 0.0f;
            if (HAS_SCALE && begin + t < a.length) scale = a.scale[rows + begin + t];
            const StepSize step = softplus(get(tile.dt[own]) + bias);
            const float dt = step.value * scale;
            float g = get(tile.dy[own]);
            if (HAS_Z) {
                // y stands behind its gate z sigmoid(z), which is divided out again
                const float z = get(tile.z[own]), sig = sigmoid(z);
                const bool is_lost = GATE_LOSES(z);
                shared.slopes[warp][t0 / BLOCK][lane] = is_lost ? g * sig * (1.0f + z * (1.0f - sig)) : 0.0f;
                put(&tile.z[own], is_lost ? 0.0f : g * get(tile.y[own]) * (rcp(z) + 1.0f - sig));
                if (__any_sync(FULL, is_lost)) lost |= 1u << (t0 / BLOCK);
                g *= z * sig;
            }
            steps[c][t] = {dt, dt * get(tile.x[own]), g, step.slope * scale};
        }
        __syncwarp();
#pragma unroll 1
        for (int t0 = 0; t0 < TILE; t0 += BLOCK) {
#pragma unroll
            for (int k = 0; k < SPT; k++) shared.starts[warp][t0 / BLOCK][k][lane] = h[k];
            if (t0 + BLOCK == TILE) break;
#pragma unroll
            for (int j = 0; j < BLOCK; j++) {
                const StepBack step = steps[c][t0 + j];
                const Pair pair = pairs[(t0 + j) * 8];
#pragma unroll
                for (int k = 0; k < SPT; k++) h[k] = ex2(step.dt * A_log2[k]) * h[k] + step.du * pair.b[k];
            }
        }

#pragma unroll 1
        for (int t0 = TILE - BLOCK; t0 >= 0; t0 -= BLOCK) {
            float before[SPT], states[BLOCK][SPT], decays[BLOCK][SPT];
#pragma unroll
            for (int k = 0; k < SPT; k++) before[k] = h[k] = shared.starts[warp][t0 / BLOCK][k][lane];
#pragma unroll
            for (int j = 0; j < BLOCK; j++) {
                const StepBack step = steps[c][t0 + j];
                const Pair pair = pairs[(t0 + j) * 8];
#pragma unroll
                for (int k = 0; k < SPT; k++) {
                    decays[j][k] = ex2(step.dt * A_log2[k]);
                    h[k] = decays[j][k] * h[k] + step.du * pair.b[k];
                    states[j][k] = h[k];
                }
            }
            const int own = (t0 + s) * CHANNELS + local;
            const StepBack mine = steps[c][t0 + s];
            const float x = get(tile.x[own]);
            if (HAS_Z && lost >> (t0 / BLOCK) & 1) {
                float sums[BLOCK];
#pragma unroll
                for (int j = 0; j < BLOCK; j++) {
                    sums[j] = 0.0f;
#pragma unroll
                    for (int k = 0; k < SPT; k++) sums[j] += states[j][k] * pairs[(t0 + j) * 8].c[k];
                }
                const float ungated = sum_over_states(sums, s) + skip * x;
                const float slope = shared.slopes[warp][t0 / BLOCK][lane];
                if (slope != 0.0f) put(&tile.z[own], slope * ungated);
            }

            float dinputs[BLOCK], dsteps[BLOCK];
            if (block > 1) barrier_wait(&shared.free[block % 2], block / 2 - 1);
#pragma unroll
            for (int j0 = BLOCK - GROUP; j0 >= 0; j0 -= GROUP) {
                float total[2][4] = {};  // of values 0 to 7 and 8 to 15; rows 8 to 15 stay empty
#pragma unroll
                for (int m = GROUP - 1; m >= 0; m--) {
                    const int j = j0 + m;
                    const StepBack step = steps[c][t0 + j];
                    const Pair pair = pairs[(t0 + j) * 8];
                    float dinput = 0.0f, dstep = 0.0f, values[VALUES];
#pragma unroll
                    for (int k = 0; k < SPT; k++) {
                        const float dh = step.g * pair.c[k] + carry[k];
                        const float past = j > 0 ? states[j > 0 ? j - 1 : 0][k] : before[k];
                        values[k] = dh * step.du;
                        values[SPT + k] = step.g * states[j][k];
                        dinput += dh * pair.b[k];
                        carry[k] = dh * decays[j][k];
                        const float q = carry[k] * past;
                        dstep += q * A[k];
                        dA[k] += q * step.dt;
                    }
                    dinputs[j] = dinput;
                    dsteps[j] = dstep;
#pragma unroll
                    for (int v = 0; v < VALUES; v += 2) {
                        const int row = m * VALUES + v;
                        sum_over_channels(total[row / 8], row % 8, values[v], values[v + 1], is);
                    }
                }
                float* to = &shared.sums[block % 2][warp][j0][0][0] + s * 8 + 2 * c;
                *(float2*)to = {total[0][0], total[0][1]};
                *(float2*)(to + 64) = {total[1][0], total[1][1]};
            }
            const float dinput = sum_over_states(dinputs, s), dstep = sum_over_states(dsteps, s);
            const float draw = (x * dinput + dstep) * mine.slope;
            put(&tile.x[own], mine.dt * dinput + skip * mine.g);
            put(&tile.dt[own], draw);
            dskip += mine.g * x;
            dbias += draw;

            __syncwarp();
            if (lane == 0) barrier_arrive(&shared.full[block % 2]);
            if (block > 0) add_up(block - 1);
            block++;
        }
    }
    add_up(block - 1);
    __syncthreads();
    store(0);
#pragma unroll
    for (int m = 4; m <= 16; m *= 2) {
        dskip += __shfl_xor_sync(FULL, dskip, m);
        dbias += __shfl_xor_sync(FULL, dbias, m);
    }
    if (inside) {
#pragma unroll
        for (int k = 0; k < SPT; k++) {
            a.dA[state + k] = dA[k];
            a.dfirst[state + k] = carry[k];
        }
        if (s == 0) {
            a.dD[(i64)b * a.channels + channel] = dskip;
            a.dbias[(i64)b * a.channels + channel] = dbias;
        }
    }
}
#endif
