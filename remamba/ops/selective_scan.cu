// The selective scan of Mamba and its gradients, compiled at run time by NVRTC (selective_scan_cuda.py).
//
// A warp owns 4 channels. Of a channel's N states each of 8 lanes holds N / 8, so that every step of the
// recurrence is done once, in registers, and one pass over the sequence is enough:
//     lane = 4 * s + c,   c: channel of the warp,   s: group of states, and the step it looks after.
// Steps go in blocks of 8. Before a block, lane (s, c) computes the time step of step s; after it, the
// 8 partial sums of y are added across s so that lane (s, c) is left with the y of step s.
// Rows arrive in shared memory by asynchronous copies of 16 bytes, a tile of TILE steps ahead.
//
// Defined from outside: TYPE (0 float, 1 bfloat16, 2 half), WARPS, SPT (states a lane), TILE,
// HAS_Z, HAS_D, HAS_BIAS, HAS_SCALE, PARAM (TYPE of D and dt_bias), SAVE (forward keeps states),
// BLOCKS (thread blocks a multiprocessor should hold).

#define N (8 * SPT)
#define CHANNELS (4 * WARPS)
#define BLOCK 8
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

// v[j] of every lane summed over the 8 lanes of a channel; lane s is left with that of j = s
__device__ __forceinline__ float sum_over_states(const float (&v)[BLOCK], int s) {
    float a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float mine = s & 4 ? v[i + 4] : v[i], other = s & 4 ? v[i] : v[i + 4];
        a[i] = mine + __shfl_xor_sync(FULL, other, 16);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float mine = s & 2 ? a[i + 2] : a[i], other = s & 2 ? a[i] : a[i + 2];
        b[i] = mine + __shfl_xor_sync(FULL, other, 8);
    }
    float mine = s & 1 ? b[1] : b[0], other = s & 1 ? b[0] : b[1];
    return mine + __shfl_xor_sync(FULL, other, 4);
}

struct __align__(SPT == 1 ? 8 : 16) Pair {  // B and C of a lane's states at one step
    float b[SPT], c[SPT];
};

struct Arguments {
    const T *x, *dt, *z, *B, *C, *dy;
    const float* A;
    const P *D, *bias;
    const float *scale, *first;       // (b, l), (b, e, n)
    T* y;                             // forward
    float *last, *starts;             // (b, e, n), (b, tiles, e, n)
    const float* dlast;               // backward
    T *dx, *ddt, *dz;
    float *dA, *dD, *dbias, *dfirst;  // (b, e, n), (b, e), (b, e), (b, e, n)
    float* dBC;                       // (b, channel blocks, l, 2 n)
    i64 x_row, x_step, dt_row, dt_step, z_row, z_step, B_row, B_step, C_row, C_step, dy_row, dy_step;
    int length, channels;
};

#define PER_COPY (16 / (int)sizeof(T))

// steps [begin, begin + TILE) of `width` values from `from`; zeros outside
__device__ __forceinline__ void load_tile(T* to, const T* from, i64 step, int begin, int length, int width,
                                          int inside) {
    int copies = width / PER_COPY;
    for (int i = threadIdx.x; i < TILE * copies; i += THREADS) {
        int t = i / copies, k = i % copies * PER_COPY;
        bool ok = begin + t < length && k < inside;
        copy_async(to + t * width + k, ok ? from + (begin + t) * step + k : from, ok);
    }
}
__device__ __forceinline__ void store_tile(T* to, const T* from, i64 step, int begin, int length, int inside) {
    const int copies = CHANNELS / PER_COPY;
    for (int i = threadIdx.x; i < TILE * copies; i += THREADS) {
        int t = i / copies, k = i % copies * PER_COPY;
        if (begin + t < length && k < inside)
            *(uint4*)(to + (begin + t) * step + k) = *(const uint4*)(from + t * CHANNELS + k);
    }
}
__device__ __forceinline__ void pack_tile(Pair* to, const T* B, const T* C) {
    for (int i = threadIdx.x; i < TILE * 8; i += THREADS) {
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
    T dy[TILE * CHANNELS];
};

__device__ __forceinline__ void load_inputs(Tile* tile, const Arguments& a, int b, int channel, int begin) {
    int inside = a.channels - channel;
    load_tile(tile->x, a.x + b * a.x_row + channel, a.x_step, begin, a.length, CHANNELS, inside);
    load_tile(tile->dt, a.dt + b * a.dt_row + channel, a.dt_step, begin, a.length, CHANNELS, inside);
    if (HAS_Z) load_tile(tile->z, a.z + b * a.z_row + channel, a.z_step, begin, a.length, CHANNELS, inside);
    load_tile(tile->B, a.B + b * a.B_row, a.B_step, begin, a.length, N, N);
    load_tile(tile->C, a.C + b * a.C_row, a.C_step, begin, a.length, N, N);
}

struct Step {
    float dt, du;  // Delta, Delta * x
};

struct __align__(16) ForwardShared {
    Tile tiles[4];
    Pair pairs[2][TILE * 8];
    Step steps[WARPS][4][BLOCK + 2];  // 2 more keep the 4 channels in different banks
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_forward(const Arguments a) {
    DYNAMIC_SHARED(memory);
    ForwardShared& shared = *(ForwardShared*)memory;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane & 3, s = lane >> 2;
    const int b = blockIdx.y, first_channel = blockIdx.x * CHANNELS;
    const int local = warp * 4 + c, channel = first_channel + local;
    const bool inside = channel < a.channels;
    const int tiles = (a.length + TILE - 1) / TILE;
    const i64 state = ((i64)b * a.channels + channel) * N + s * SPT;

    float h[SPT], A[SPT];
#pragma unroll
    for (int k = 0; k < SPT; k++) {
        h[k] = inside && a.first ? a.first[state + k] : 0.0f;
        A[k] = inside ? a.A[(i64)channel * N + s * SPT + k] * LOG2_E : 0.0f;
    }
    const float skip = HAS_D && inside ? get(a.D[channel]) : 0.0f;
    const float bias = HAS_BIAS && inside ? get(a.bias[channel]) : 0.0f;
    T* y = a.y + (i64)b * a.length * a.channels + first_channel;
    Step(&steps)[4][BLOCK + 2] = shared.steps[warp];

    load_inputs(&shared.tiles[0], a, b, first_channel, 0);
    copies_end();
    copies_wait();
    __syncthreads();
    pack_tile(shared.pairs[0], shared.tiles[0].B, shared.tiles[0].C);
    if (tiles > 1) load_inputs(&shared.tiles[1], a, b, first_channel, TILE);
    copies_end();

    for (int i = 0; i < tiles; i++) {
        copies_wait();
        __syncthreads();
        const int begin = i * TILE;
        if (i + 2 < tiles) load_inputs(&shared.tiles[(i + 2) % 4], a, b, first_channel, begin + 2 * TILE);
        copies_end();
        if (i + 1 < tiles)
            pack_tile(shared.pairs[(i + 1) % 2], shared.tiles[(i + 1) % 4].B, shared.tiles[(i + 1) % 4].C);
        if (i > 0)
            store_tile(y, shared.tiles[(i - 1) % 4].x, a.channels, begin - TILE, a.length,
                       a.channels - first_channel);
        if (SAVE && inside) {
            float* start = a.starts + (((i64)b * tiles + i) * a.channels + channel) * N + s * SPT;
#pragma unroll
            for (int k = 0; k < SPT; k++) start[k] = h[k];
        }
        Tile& tile = shared.tiles[i % 4];
        const Pair* pairs = shared.pairs[i % 2] + s;

#pragma unroll 1
        for (int t0 = 0; t0 < TILE; t0 += BLOCK) {
            const int t = t0 + s, place = t * CHANNELS + local;
            const float x = get(tile.x[place]);
            float dt = softplus(get(tile.dt[place]) + bias).value;
            if (HAS_SCALE) dt *= begin + t < a.length ? a.scale[(i64)b * a.length + begin + t] : 0.0f;
            if (begin + t >= a.length) dt = 0.0f;
            __syncwarp();
            steps[c][s] = {dt, dt * x};
            __syncwarp();

            float sums[BLOCK];
#pragma unroll
            for (int j = 0; j < BLOCK; j += 2) {
                const float4 two = *(const float4*)&steps[c][j];
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const float step = m ? two.z : two.x, input = m ? two.w : two.y;
                    const Pair pair = pairs[(t0 + j + m) * 8];
                    float sum = 0.0f;
#pragma unroll
                    for (int k = 0; k < SPT; k++) {
                        h[k] = ex2(step * A[k]) * h[k] + input * pair.b[k];
                        sum += h[k] * pair.c[k];
                    }
                    sums[j + m] = sum;
                }
            }
            float out = sum_over_states(sums, s) + skip * x;
            if (HAS_Z) {
                const float z = get(tile.z[place]);
                out *= z * sigmoid(z);
            }
            put(&tile.x[place], out);
        }
    }
    __syncthreads();
    store_tile(y, shared.tiles[(tiles - 1) % 4].x, a.channels, (tiles - 1) * TILE, a.length,
               a.channels - first_channel);
    if (inside) {
#pragma unroll
        for (int k = 0; k < SPT; k++) a.last[state + k] = h[k];
    }
}

struct __align__(16) StepBack {
    float dt, du, g, unused;  // Delta, Delta * x, gradient of y before the gate
};
struct __align__(16) BackwardShared {
    TileBack tiles[2];
    Pair pairs[TILE * 8];
    StepBack steps[WARPS][4][TILE + 1];
    float starts[WARPS][TILE / BLOCK][SPT][32];  // states before each block
    float sums[2][WARPS][BLOCK][2 * N];          // dB and dC of each warp's 4 channels
};

struct Gate {
    float x, dt, slope, g, z_gradient;  // z_gradient * (y before the gate) is dz
};
__device__ __forceinline__ Gate read_gate(const TileBack& tile, int place, float bias, float scale) {
    Gate r;
    r.x = get(tile.x[place]);
    StepSize step = softplus(get(tile.dt[place]) + bias);
    r.dt = step.value * scale;
    r.slope = step.slope * scale;
    r.g = get(tile.dy[place]);
    r.z_gradient = 0.0f;
    if (HAS_Z) {
        const float z = get(tile.z[place]), sig = sigmoid(z);
        r.z_gradient = r.g * sig * (1.0f + z * (1.0f - sig));
        r.g *= z * sig;
    }
    return r;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_backward(const Arguments a) {
    DYNAMIC_SHARED(memory);
    BackwardShared& shared = *(BackwardShared*)memory;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane & 3, s = lane >> 2;
    const int b = blockIdx.y, first_channel = blockIdx.x * CHANNELS;
    const int local = warp * 4 + c, channel = first_channel + local;
    const bool inside = channel < a.channels;
    const int tiles = (a.length + TILE - 1) / TILE;
    const i64 state = ((i64)b * a.channels + channel) * N + s * SPT;
    const i64 rows = (i64)b * a.length;

    float A[SPT], dA[SPT], carry[SPT];  // carry: the adjoint of the state that a step starts from
#pragma unroll
    for (int k = 0; k < SPT; k++) {
        A[k] = inside ? a.A[(i64)channel * N + s * SPT + k] : 0.0f;
        carry[k] = inside && a.dlast ? a.dlast[state + k] : 0.0f;
        dA[k] = 0.0f;
    }
    const float skip = HAS_D && inside ? get(a.D[channel]) : 0.0f;
    const float bias = HAS_BIAS && inside ? get(a.bias[channel]) : 0.0f;
    float dskip = 0.0f, dbias = 0.0f;
    float* dBC = a.dBC + ((i64)b * gridDim.x + blockIdx.x) * a.length * (2 * N);
    StepBack(&steps)[4][TILE + 1] = shared.steps[warp];
    const int width = a.channels - first_channel;
    int flip = 0;

    auto load = [&](int i) {
        TileBack* tile = &shared.tiles[i % 2];
        load_inputs(tile, a, b, first_channel, i * TILE);
        load_tile(tile->dy, a.dy + b * a.dy_row + first_channel, a.dy_step, i * TILE, a.length, CHANNELS, width);
    };
    auto store = [&](int i) {
        TileBack& tile = shared.tiles[i % 2];
        const i64 at = rows * a.channels + first_channel;
        store_tile(a.dx + at, tile.x, a.channels, i * TILE, a.length, width);
        store_tile(a.ddt + at, tile.dt, a.channels, i * TILE, a.length, width);
        if (HAS_Z) store_tile(a.dz + at, tile.z, a.channels, i * TILE, a.length, width);
    };
    load(tiles - 1);
    copies_end();

    for (int i = tiles - 1; i >= 0; i--) {
        copies_wait();
        __syncthreads();
        const int begin = i * TILE;
        TileBack& tile = shared.tiles[i % 2];
        if (i + 1 < tiles) store(i + 1);
        pack_tile(shared.pairs, tile.B, tile.C);
        __syncthreads();
        if (i > 0) load(i - 1);
        copies_end();
        const Pair* pairs = shared.pairs + s;

        auto scale_at = [&](int t) {
            if (begin + t >= a.length) return 0.0f;
            return HAS_SCALE ? a.scale[rows + begin + t] : 1.0f;
        };

        // forward once more, for the states before each block
        float h[SPT];
#pragma unroll
        for (int k = 0; k < SPT; k++)
            h[k] = inside ? a.starts[(((i64)b * tiles + i) * a.channels + channel) * N + s * SPT + k] : 0.0f;
#pragma unroll 1
        for (int t0 = 0; t0 < TILE; t0 += BLOCK) {
            const Gate r = read_gate(tile, (t0 + s) * CHANNELS + local, bias, scale_at(t0 + s));
            steps[c][t0 + s] = {r.dt, r.dt * r.x, r.g, 0.0f};
            __syncwarp();
#pragma unroll
            for (int k = 0; k < SPT; k++) shared.starts[warp][t0 / BLOCK][k][lane] = h[k];
            if (t0 + BLOCK == TILE) break;
#pragma unroll
            for (int j = 0; j < BLOCK; j++) {
                const StepBack step = steps[c][t0 + j];
                const Pair pair = pairs[(t0 + j) * 8];
#pragma unroll
                for (int k = 0; k < SPT; k++) h[k] = ex2(step.dt * (A[k] * LOG2_E)) * h[k] + step.du * pair.b[k];
            }
        }

#pragma unroll 1
        for (int t0 = TILE - BLOCK; t0 >= 0; t0 -= BLOCK) {
            float before[SPT], states[BLOCK][SPT], decays[BLOCK][SPT], sums[BLOCK];
#pragma unroll
            for (int k = 0; k < SPT; k++) before[k] = h[k] = shared.starts[warp][t0 / BLOCK][k][lane];
#pragma unroll
            for (int j = 0; j < BLOCK; j++) {
                const StepBack step = steps[c][t0 + j];
                const Pair pair = pairs[(t0 + j) * 8];
                float sum = 0.0f;
#pragma unroll
                for (int k = 0; k < SPT; k++) {
                    decays[j][k] = ex2(step.dt * (A[k] * LOG2_E));
                    h[k] = decays[j][k] * h[k] + step.du * pair.b[k];
                    states[j][k] = h[k];
                    sum += h[k] * pair.c[k];
                }
                sums[j] = sum;
            }
            const int place = (t0 + s) * CHANNELS + local;
            const Gate r = read_gate(tile, place, bias, scale_at(t0 + s));
            const float ungated = HAS_Z ? sum_over_states(sums, s) + skip * r.x : 0.0f;

            float dinputs[BLOCK], dsteps[BLOCK];
            float(&partial)[BLOCK][2 * N] = shared.sums[flip][warp];
#pragma unroll
            for (int j = BLOCK - 2; j >= 0; j -= 2) {
                float later[2 * SPT], earlier[2 * SPT];  // dB, dC of steps j + 1 and j
#pragma unroll
                for (int m = 1; m >= 0; m--) {
                    const StepBack step = steps[c][t0 + j + m];
                    const Pair pair = pairs[(t0 + j + m) * 8];
                    float(&out)[2 * SPT] = m ? later : earlier;
                    float dinput = 0.0f, dstep = 0.0f;
#pragma unroll
                    for (int k = 0; k < SPT; k++) {
                        const float dh = step.g * pair.c[k] + carry[k];
                        const float past = j + m > 0 ? states[j + m > 0 ? j + m - 1 : 0][k] : before[k];
                        out[k] = dh * step.du;
                        out[SPT + k] = step.g * states[j + m][k];
                        dinput += dh * pair.b[k];
                        carry[k] = dh * decays[j + m][k];
                        const float q = carry[k] * past;
                        dstep += q * A[k];
                        dA[k] += q * step.dt;
                    }
                    dinputs[j + m] = dinput;
                    dsteps[j + m] = dstep;
                }
                // over the 4 channels: lane c is left with dB (c even) or dC of step j (c < 2) or j + 1
                float half[2 * SPT];
#pragma unroll
                for (int k = 0; k < 2 * SPT; k++) {
                    float mine = c & 2 ? later[k] : earlier[k], other = c & 2 ? earlier[k] : later[k];
                    half[k] = mine + __shfl_xor_sync(FULL, other, 2);
                }
#pragma unroll
                for (int k = 0; k < SPT; k++) {
                    float mine = c & 1 ? half[SPT + k] : half[k], other = c & 1 ? half[k] : half[SPT + k];
                    partial[j + (c >> 1)][(c & 1) * N + s * SPT + k] = mine + __shfl_xor_sync(FULL, other, 1);
                }
            }
            const float dinput = sum_over_states(dinputs, s), dstep = sum_over_states(dsteps, s);
            const float draw = (r.x * dinput + dstep) * r.slope;
            __syncwarp();
            put(&tile.x[place], r.dt * dinput + skip * r.g);
            put(&tile.dt[place], draw);
            if (HAS_Z) put(&tile.z[place], r.z_gradient * ungated);
            dskip += r.g * r.x;
            dbias += draw;

            __syncthreads();
            for (int v = threadIdx.x; v < BLOCK * 2 * N; v += THREADS) {
                const int t = begin + t0 + v / (2 * N);
                float sum = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum += (&shared.sums[flip][w][0][0])[v];
                if (t < a.length) dBC[(i64)t * (2 * N) + v % (2 * N)] = sum;
            }
            flip ^= 1;
        }
    }
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
