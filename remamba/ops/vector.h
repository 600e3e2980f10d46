// What the C kernels share: vectors as wide as the processor's, elements, elementary functions.
//
// Errors of exp2, exp and log1p are at most 2 units in the last place; powers are held between the
// smallest normal float and about 2 ** 127. Never compile this with -ffast-math.
#ifndef REMAMBA_VECTOR_H
#define REMAMBA_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define EXPORT __attribute__((visibility("default")))
// before a loop of a fixed, small count whose values lie in registers
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

// as remamba/ops/compiled.py numbers them
enum { F32 = 0, BF16 = 1 };

#ifdef _OPENMP
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define THREAD 0
#define THREADS 1
#endif

typedef struct {
    int64_t from, to;
} Range;

// this thread's part of `count` things
INLINE Range my_part(int64_t count) {
    int64_t threads = THREADS, thread = THREAD;
    return (Range){count * thread / threads, count * (thread + 1) / threads};
}

INLINE vec splat(float v) { return v - (vec){0}; }

INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

INLINE int64_t size_of(int type) { return type == F32 ? 4 : 2; }

INLINE float one(const void *p, int64_t i, int type) {
    if (type == F32) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

INLINE void put_one(void *p, int64_t i, int type, float v) {
    if (type == F32) {
        ((float *)p)[i] = v;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    // to nearest, ties to even; what is no number stays none
    bits = v == v ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
    ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
}

// LANES values from p[i] on
INLINE vec get(const void *p, int64_t i, int type) {
    if (type == F32) return load((const float *)p + i);
    const uint16_t *from = (const uint16_t *)p + i;
#ifdef __AVX512F__
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return (vec)_mm512_slli_epi32(bits, 16);
#elif defined(__AVX2__)
    // one instruction; gcc makes five of __builtin_convertvector
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return (vec)_mm256_slli_epi32(bits, 16);
#else
    hvec half;
    memcpy(&half, from, sizeof half);
    return (vec)(__builtin_convertvector(half, uvec) << 16);
#endif
}

INLINE void put(void *p, int64_t i, int type, vec v) {
    if (type == F32) {
        store((float *)p + i, v);
        return;
    }
    uvec bits;
    memcpy(&bits, &v, sizeof bits);
    uvec rounded = bits + 0x7fff + ((bits >> 16) & 1);
    uvec number = (uvec)(v == v);
    bits = (rounded & number) | ((bits | 0x400000) & ~number);
    hvec half = __builtin_convertvector(bits >> 16, hvec);
    memcpy((uint16_t *)p + i, &half, sizeof half);
}

// the first `count` values from p[i] on, zeros behind them
INLINE vec get_some(const void *p, int64_t i, int type, int64_t count) {
    if (count >= LANES) return get(p, i, type);
    float v[LANES] = {0};
    for (int64_t j = 0; j < count; j++) v[j] = one(p, i + j, type);
    return load(v);
}

INLINE void put_some(void *p, int64_t i, int type, vec v, int64_t count) {
    if (count >= LANES) {
        put(p, i, type, v);
        return;
    }
    for (int64_t j = 0; j < count; j++) put_one(p, i + j, type, v[j]);
}

INLINE float total_of(vec v) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)v);
#elif LANES == 8
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#endif
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

INLINE vec choose(ivec mask, vec yes, vec no) {
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

// v held between two numbers; what is no number stays none
INLINE vec held_between(float low, float high, vec v) {
#if LANES == 16
    return (vec)_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), (__m512)v));
#elif LANES == 8
    return (vec)_mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), (__m256)v));
#else
    v = choose(v > high, splat(high), v);
    return choose(v < low, splat(low), v);
#endif
}

// adding it leaves a number's nearest integer in the low bits
#define ROUND 12582912.0f
#define LOG2_E 1.44269504088896340736f

// 2 ** (k + r), r in [-0.5, 0.5]; `rounded` is k + ROUND
INLINE vec power_of(vec rounded, vec r) {
    vec p = 0.00015353360504377633f * r + 0.0013398875016719103f;
    p = p * r + 0.00961843691766262f;
    p = p * r + 0.055503323674201965f;
    p = p * r + 0.24022647738456726f;
    p = p * r + 0.6931471824645996f;
    p = p * r + 1.0f;
    return (vec)((ivec)p + ((ivec)rounded << 23));
}

INLINE vec exp2_of(vec v) {
    v = held_between(-126.0f, 127.0f, v);
    vec rounded = v + ROUND;
    return power_of(rounded, v - (rounded - ROUND));
}

INLINE vec exp_of(vec v) {
    v = held_between(-87.0f, 88.0f, v);
    vec rounded = v * LOG2_E + ROUND;
    vec k = rounded - ROUND;
    // ln 2 in two parts, the first of few digits
    vec r = (v - k * 0.693359375f) + k * 2.12194440e-4f;
    return power_of(rounded, r * LOG2_E);
}

// log(1 + u) for u in [0, 1]
INLINE vec log1p_of(vec u) {
    vec s = u / (u + 2.0f);
    vec z = s * s, half = 0.5f * u * u;
    vec q = 0.2802446484565735f * z + 0.27999138832092285f;
    q = q * z + 0.4002169966697693f;
    q = q * z + 0.6666641235351562f;
    return u - (half - s * (half + z * q));
}

INLINE vec softplus_of(vec v) {
    vec magnitude = choose(v < 0.0f, -v, v);
    return choose(v < 0.0f, splat(0.0f), v) + log1p_of(exp_of(-magnitude));
}

INLINE vec silu_of(vec v) { return v / (exp_of(-v) + 1.0f); }

#endif
