// The selective scan of Mamba, for inference: softplus, recurrence, skip and gate in one pass.
//
// A tile is WIDTH channels of one row, and goes through STEPS positions at a time, state by state:
// what is read again and again (B, C, steps and inputs of the tile) stays in the first cache.
#include "vector.h"

enum { WIDTH = 16, STEPS = 32, PARTS = WIDTH / LANES };

typedef struct {
    const void *x, *dt, *z, *B, *C;
    const float *A, *D, *bias, *scale, *first;
    void *y;
    float *last, *scratch;
    int64_t x_row, x_step, dt_row, dt_step, z_row, z_step, B_row, B_step, C_row, C_step;
    int64_t rows, length, channels, n, type, threads;
} ScanArguments;

// B and C of the steps from t on as floats, (steps, n); zeros where a step is 0
INLINE void scan_copy(const ScanArguments *a, int type, int64_t row, int64_t t, int64_t steps,
                      float *B, float *C) {
    for (int64_t i = 0; i < steps; i++) {
        int64_t at_B = row * a->B_row + (t + i) * a->B_step;
        int64_t at_C = row * a->C_row + (t + i) * a->C_step;
        int stands = a->scale && a->scale[row * a->length + t + i] == 0;
        for (int64_t k = 0; k < a->n; k++) {
            B[i * a->n + k] = stands ? 0 : one(a->B, at_B + k, type);
            C[i * a->n + k] = one(a->C, at_C + k, type);
        }
    }
}

// `is_whole`: all of the tile's channels are there
INLINE void scan_tile(const ScanArguments *a, int type, int is_whole, int64_t row, int64_t e,
                      int64_t t, int64_t steps, const float *B, const float *C, const float *A,
                      float *state) {
    float step[STEPS * WIDTH], u[STEPS * WIDTH], y[STEPS * WIDTH];
    int64_t n = a->n;
    for (int64_t i = 0; i < steps; i++) {
        float scale = a->scale ? a->scale[row * a->length + t + i] : 1.0f;
        UNROLL for (int part = 0; part < PARTS; part++) {
            int64_t c = e + part * LANES, at = i * WIDTH + part * LANES;
            int64_t left = is_whole ? LANES : a->channels - c;
            vec x = {0}, s = {0}, D = {0};
            if (left > 0) {
                x = get_some(a->x, row * a->x_row + (t + i) * a->x_step + c, type, left);
                s = get_some(a->dt, row * a->dt_row + (t + i) * a->dt_step + c, type, left);
                if (a->bias) s += get_some(a->bias, c, F32, left);
                if (a->D) D = get_some(a->D, c, F32, left);
            }
            s = softplus_of(s) * scale;
            vec added = s * x;
            if (scale == 0) s = added = splat(0.0f);  // whatever lies there
            store(step + at, s);
            store(u + at, added);
            store(y + at, D * x);
        }
    }
    for (int64_t k = 0; k < n; k++) {
        vec h[PARTS], rate[PARTS];
        UNROLL for (int part = 0; part < PARTS; part++) {
            h[part] = load(state + k * WIDTH + part * LANES);
            rate[part] = load(A + k * WIDTH + part * LANES);
        }
        for (int64_t i = 0; i < steps; i++) {
            float b = B[i * n + k], c = C[i * n + k];
            UNROLL for (int part = 0; part < PARTS; part++) {
                int64_t at = i * WIDTH + part * LANES;
                vec decay = exp2_of(load(step + at) * rate[part]);
                h[part] = h[part] * decay + load(u + at) * b;
                store(y + at, load(y + at) + h[part] * c);
            }
        }
        UNROLL for (int part = 0; part < PARTS; part++) store(state + k * WIDTH + part * LANES, h[part]);
    }
    for (int64_t i = 0; i < steps; i++) {
        UNROLL for (int part = 0; part < PARTS; part++) {
            int64_t c = e + part * LANES, left = is_whole ? LANES : a->channels - c;
            if (left <= 0) break;
            vec out = load(y + i * WIDTH + part * LANES);
            if (a->z)
                out *= silu_of(get_some(a->z, row * a->z_row + (t + i) * a->z_step + c, type, left));
            put_some(a->y, (row * a->length + t + i) * a->channels + c, type, out, left);
        }
    }
}

// a tile's rates and states, (n, WIDTH), from (channels, n) and back
INLINE void scan_enter(const ScanArguments *a, int64_t row, int64_t e, float *A, float *state) {
    for (int64_t k = 0; k < a->n; k++) {
        for (int64_t i = 0; i < WIDTH; i++) {
            int is_there = e + i < a->channels;
            int64_t at = (e + i) * a->n + k;
            A[k * WIDTH + i] = is_there ? a->A[at] * LOG2_E : 0;
            state[k * WIDTH + i] =
                is_there && a->first ? a->first[row * a->channels * a->n + at] : 0;
        }
    }
}

INLINE void scan_leave(const ScanArguments *a, int64_t row, int64_t e, const float *state) {
    for (int64_t i = 0; i < WIDTH && e + i < a->channels; i++)
        for (int64_t k = 0; k < a->n; k++)
            a->last[(row * a->channels + e + i) * a->n + k] = state[k * WIDTH + i];
}

INLINE void scan_range(const ScanArguments *a, int type, Range range, int64_t tiles) {
    int64_t n = a->n, size = n * WIDTH;
    float *own = a->scratch + range.from * 2 * size;
    float *B = a->scratch + tiles * a->rows * 2 * size + THREAD * 2 * STEPS * n, *C = B + STEPS * n;
    while (range.from < range.to) {
        int64_t row = range.from / tiles, first = range.from % tiles;
        int64_t count = tiles - first < range.to - range.from ? tiles - first
                                                              : range.to - range.from;
        for (int64_t i = 0; i < count; i++)
            scan_enter(a, row, (first + i) * WIDTH, own + i * 2 * size, own + (i * 2 + 1) * size);
        for (int64_t t = 0; t < a->length; t += STEPS) {
            int64_t steps = a->length - t < STEPS ? a->length - t : STEPS;
            scan_copy(a, type, row, t, steps, B, C);
            for (int64_t i = 0; i < count; i++) {
                int64_t e = (first + i) * WIDTH;
                float *A = own + i * 2 * size;
                if (e + WIDTH <= a->channels)
                    scan_tile(a, type, 1, row, e, t, steps, B, C, A, A + size);
                else
                    scan_tile(a, type, 0, row, e, t, steps, B, C, A, A + size);
            }
        }
        for (int64_t i = 0; i < count; i++)
            scan_leave(a, row, (first + i) * WIDTH, own + (i * 2 + 1) * size);
        range.from += count;
        own += count * 2 * size;
    }
}

EXPORT void selective_scan(const void *block) {
    const ScanArguments *a = block;
    int64_t tiles = (a->channels + WIDTH - 1) / WIDTH;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows * tiles);
        if (a->type == F32)
            scan_range(a, F32, range, tiles);
        else
            scan_range(a, BF16, range, tiles);
    }
}
