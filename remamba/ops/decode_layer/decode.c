// One token of every row through all blocks of a Mamba or Mamba-2, and the logits behind it.
//
// Threads share the rows of each product, and meet four times a block. What is between products is
// done by the thread that needs it, or by each thread for itself where that costs less than a
// meeting. Weights are read as they lie in memory (float32 or bfloat16), sums are float32.
#include "vector.h"

#include <sched.h>

enum { TILE = 4 };

typedef struct {
    const void *norm, *in_proj, *in_bias, *conv, *conv_bias, *dt_bias, *A_log, *D, *out_proj,
        *out_bias, *x_proj, *dt_proj, *gated_norm;
    void *window;
    float *state;
    int64_t type, dt_bias_type, A_type, D_type, window_type;
    double norm_eps, mixer_eps, gated_eps, dt_least, dt_most;
} DecodeBlock;

typedef struct {
    const DecodeBlock *blocks;
    const void *norm, *head;
    float *residual, *logits, *scratch;
    int64_t *meeting;
    double eps;
    int64_t count, rows, d, e, n, rank, width, vocab, heads, groups, norm_type, head_type, threads;
} DecodeArguments;

// Threads of one team go on when all are here. They spin a little, then let others run.
INLINE void decode_meet(int64_t *meeting, int64_t threads, int64_t *phase) {
    if (threads == 1) return;
    *phase = !*phase;
    if (__atomic_add_fetch(&meeting[0], 1, __ATOMIC_ACQ_REL) == threads) {
        meeting[0] = 0;
        __atomic_store_n(&meeting[1], *phase, __ATOMIC_RELEASE);
        return;
    }
    for (int64_t turns = 0; __atomic_load_n(&meeting[1], __ATOMIC_ACQUIRE) != *phase; turns++)
        if (turns > 2000) sched_yield();
}

// `tall` rows of a weight (rows, k) from `row` on, times `wide` inputs (k floats each, `apart`)
INLINE void decode_tile(const void *weight, int type, int64_t k, int64_t row, const float *x,
                        int64_t apart, int tall, int wide, float *out) {
    vec sums[TILE][TILE];
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) sums[i][j] = splat(0.0f);
    int64_t at = 0;
    for (; at + LANES <= k; at += LANES)
        for (int i = 0; i < tall; i++) {
            vec w = get(weight, (row + i) * k + at, type);
            for (int j = 0; j < wide; j++) sums[i][j] += w * load(x + j * apart + at);
        }
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) {
            float sum = total_of(sums[i][j]);
            for (int64_t c = at; c < k; c++)
                sum += one(weight, (row + i) * k + c, type) * x[j * apart + c];
            out[i * TILE + j] = sum;
        }
}

INLINE void decode_tiles(const void *weight, int type, int64_t k, int64_t row, const float *x,
                         int64_t apart, int tall, int wide, float *out) {
    if (tall == TILE && wide == 1)
        decode_tile(weight, type, k, row, x, apart, TILE, 1, out);
    else if (tall == TILE && wide == 2)
        decode_tile(weight, type, k, row, x, apart, TILE, 2, out);
    else
        for (int i = 0; i < tall; i++) {
            if (wide == TILE)
                decode_tile(weight, type, k, row + i, x, apart, 1, TILE, out + i * TILE);
            else
                for (int j = 0; j < wide; j++)
                    decode_tile(weight, type, k, row + i, x + j * apart, apart, 1, 1,
                                out + i * TILE + j);
        }
}

// rows [from, to) of weight (rows, k) times x (b, k) into out (b, whole); sums are added there
INLINE void decode_product(const void *weight, int64_t type, const void *bias, int64_t k,
                           Range range, const float *x, int64_t apart, int64_t b, float *out,
                           int64_t whole, int adds) {
    float found[TILE * TILE];
    for (int64_t row = range.from; row < range.to; row += TILE) {
        int tall = range.to - row < TILE ? (int)(range.to - row) : TILE;
        for (int64_t j = 0; j < b;) {
            // two inputs at a time, four where there are as many
            int wide = b - j >= TILE ? TILE : b - j >= 2 ? 2 : 1;
            if (type == F32)
                decode_tiles(weight, F32, k, row, x + j * apart, apart, tall, wide, found);
            else
                decode_tiles(weight, BF16, k, row, x + j * apart, apart, tall, wide, found);
            for (int i = 0; i < tall; i++)
                for (int c = 0; c < wide; c++) {
                    float sum = found[i * TILE + c];
                    if (bias) sum += one(bias, row + i, (int)type);
                    float *place = out + (j + c) * whole + row + i;
                    *place = adds ? *place + sum : sum;
                }
            j += wide;
        }
    }
}

// x / rms(x) * weight; without a weight where it is null
INLINE void decode_norm(const float *x, const void *weight, int type, int64_t size, double eps,
                        float *out) {
    vec sums = splat(0.0f);
    for (int64_t i = 0; i < size; i += LANES) {
        vec v = get_some(x, i, F32, size - i);
        sums += v * v;
    }
    float factor = 1.0f / sqrtf(total_of(sums) / (float)size + (float)eps);
    for (int64_t i = 0; i < size; i += LANES) {
        vec v = get_some(x, i, F32, size - i) * factor;
        if (weight) v *= get_some(weight, i, type, size - i);
        put_some(out, i, F32, v, size - i);
    }
}

// the convolution's next output for channels [from, to) of u (b, whole), in place, with silu
INLINE void decode_conv(const DecodeArguments *a, const DecodeBlock *w, float *u, int64_t whole,
                        int64_t channels, Range range) {
    int64_t taps = a->width;
    for (int64_t j = 0; j < a->rows; j++) {
        for (int64_t c = range.from; c < range.to; c++) {
            float now = u[j * whole + c];
            float sum = w->conv_bias ? one(w->conv_bias, c, (int)w->type) : 0.0f;
            int64_t place = j * (taps - 1) * channels + c;
            for (int64_t t = 0; t < taps - 1; t++) {
                float before = one(w->window, place + t * channels, (int)w->window_type);
                sum += one(w->conv, c * taps + t, (int)w->type) * before;
                if (t > 0)
                    put_one(w->window, place + (t - 1) * channels, (int)w->window_type, before);
            }
            sum += one(w->conv, c * taps + taps - 1, (int)w->type) * now;
            if (taps > 1)
                put_one(w->window, place + (taps - 2) * channels, (int)w->window_type, now);
            u[j * whole + c] = sum;
        }
        for (int64_t c = range.from; c < range.to; c += LANES) {
            vec v = get_some(u, j * whole + c, F32, range.to - c);
            put_some(u, j * whole + c, F32, silu_of(v), range.to - c);
        }
    }
}

INLINE Range decode_within(Range range, int64_t from, int64_t to) {
    Range found = {range.from < from ? from : range.from, range.to > to ? to : range.to};
    found.from -= from;
    found.to = found.to - from < found.from ? found.from : found.to - from;
    return found;
}

INLINE void decode_mamba(const DecodeArguments *a, const DecodeBlock *w, float *shared, float *own,
                         int64_t *phase) {
    int64_t b = a->rows, d = a->d, e = a->e, n = a->n, rank = a->rank, low = rank + 2 * n;
    float *xz = shared, *small = xz + b * 2 * e, *y = small + b * low;
    float *normed = own, *parts = own + b * d;
    int64_t team = THREADS;

    for (int64_t j = 0; j < b; j++)
        decode_norm(a->residual + j * d, w->norm, (int)w->type, d, w->norm_eps, normed + j * d);
    Range range = my_part(2 * e);
    decode_product(w->in_proj, w->type, w->in_bias, d, range, normed, d, b, xz, 2 * e, 0);
    decode_conv(a, w, xz, 2 * e, e, decode_within(range, 0, e));
    decode_meet(a->meeting, team, phase);

    decode_product(w->x_proj, w->type, 0, e, my_part(low), xz, 2 * e, b, small, low, 0);
    decode_meet(a->meeting, team, phase);

    const float *used = small;
    if (w->mixer_eps >= 0) {
        for (int64_t j = 0; j < b; j++) {
            int64_t at = j * low;
            decode_norm(small + at, 0, F32, rank, w->mixer_eps, parts + at);
            decode_norm(small + at + rank, 0, F32, n, w->mixer_eps, parts + at + rank);
            decode_norm(small + at + rank + n, 0, F32, n, w->mixer_eps, parts + at + rank + n);
        }
        used = parts;
    }
    range = my_part(e);
    decode_product(w->dt_proj, w->type, 0, rank, range, used, low, b, y, e, 0);
    for (int64_t c = range.from; c < range.to; c++) {
        float D = one(w->D, c, (int)w->D_type), bias = one(w->dt_bias, c, (int)w->dt_bias_type);
        for (int64_t j = 0; j < b; j++) {
            const float *B = used + j * low + rank, *C = B + n;
            float *h = w->state + (j * e + c) * n, x = xz[j * 2 * e + c];
            float step = softplus_of(splat(y[j * e + c] + bias))[0], added = step * x;
            vec sums = splat(0.0f);
            for (int64_t k = 0; k < n; k += LANES) {
                int64_t left = n - k;
                vec rate = exp_of(get_some(w->A_log, c * n + k, (int)w->A_type, left));
                vec now = exp_of(rate * -step) * get_some(h, k, F32, left);
                now += get_some(B, k, F32, left) * added;
                put_some(h, k, F32, now, left);
                sums += get_some(C, k, F32, left) * now;
            }
            y[j * e + c] = total_of(sums) + D * x;
        }
    }
    for (int64_t j = 0; j < b; j++)
        for (int64_t c = range.from; c < range.to; c += LANES) {
            int64_t left = range.to - c;
            vec gate = silu_of(get_some(xz, j * 2 * e + e + c, F32, left));
            put_some(y, j * e + c, F32, get_some(y, j * e + c, F32, left) * gate, left);
        }
    decode_meet(a->meeting, team, phase);

    decode_product(w->out_proj, w->type, w->out_bias, e, my_part(d), y, e, b, a->residual, d, 1);
    decode_meet(a->meeting, team, phase);
}

INLINE void decode_mamba2(const DecodeArguments *a, const DecodeBlock *w, float *shared, float *own,
                          int64_t *phase) {
    int64_t b = a->rows, d = a->d, e = a->e, n = a->n, heads = a->heads, p = e / heads;
    int64_t wide = e + 2 * a->groups * n, whole = e + wide + heads;
    float *zxd = shared, *y = zxd + b * whole;
    float *normed = own, *gated = own;
    int64_t team = THREADS;

    for (int64_t j = 0; j < b; j++)
        decode_norm(a->residual + j * d, w->norm, (int)w->type, d, w->norm_eps, normed + j * d);
    Range range = my_part(whole);
    decode_product(w->in_proj, w->type, w->in_bias, d, range, normed, d, b, zxd, whole, 0);
    decode_conv(a, w, zxd + e, whole, wide, decode_within(range, e, e + wide));
    decode_meet(a->meeting, team, phase);

    range = my_part(b * heads);
    for (int64_t i = range.from; i < range.to; i++) {
        int64_t j = i / heads, head = i % heads, group = head / (heads / a->groups);
        const float *row = zxd + j * whole, *x = row + e + head * p;
        const float *B = row + 2 * e + group * n, *C = B + a->groups * n;
        float bias = one(w->dt_bias, head, (int)w->dt_bias_type);
        float D = one(w->D, head, (int)w->D_type);
        float step = softplus_of(splat(row[e + wide + head] + bias))[0];
        step = step < (float)w->dt_least ? (float)w->dt_least : step;
        step = step > (float)w->dt_most ? (float)w->dt_most : step;
        float rate = exp_of(splat(one(w->A_log, head, (int)w->A_type)))[0];
        float decay = exp_of(splat(-rate * step))[0];
        for (int64_t c = 0; c < p; c++) {
            float *h = w->state + ((j * heads + head) * p + c) * n, added = step * x[c];
            vec sums = splat(0.0f);
            for (int64_t k = 0; k < n; k += LANES) {
                int64_t left = n - k;
                vec now = get_some(h, k, F32, left) * decay + get_some(B, k, F32, left) * added;
                put_some(h, k, F32, now, left);
                sums += get_some(C, k, F32, left) * now;
            }
            y[j * e + head * p + c] = total_of(sums) + D * x[c];
        }
    }
    decode_meet(a->meeting, team, phase);

    int64_t part = e / a->groups;
    for (int64_t j = 0; j < b; j++) {
        for (int64_t c = 0; c < e; c += LANES) {
            vec gate = silu_of(get_some(zxd, j * whole + c, F32, e - c));
            put_some(gated, j * e + c, F32, get_some(y, j * e + c, F32, e - c) * gate, e - c);
        }
        for (int64_t g = 0; g < a->groups; g++) {
            float *place = gated + j * e + g * part;
            const char *weight = (const char *)w->gated_norm + g * part * size_of((int)w->type);
            decode_norm(place, weight, (int)w->type, part, w->gated_eps, place);
        }
    }
    decode_product(w->out_proj, w->type, w->out_bias, e, my_part(d), gated, e, b, a->residual, d, 1);
    decode_meet(a->meeting, team, phase);
}

EXPORT void decode_logits(const void *block) {
    const DecodeArguments *a = block;
    int is_mamba = a->heads == 0;
    int64_t b = a->rows, e = a->e, low = a->rank + 2 * a->n;
    int64_t whole = is_mamba ? 2 * e + low : 2 * e + 2 * a->groups * a->n + a->heads;
    int64_t large = a->d > e ? a->d : e;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        int64_t phase = 0;
        float *own = a->scratch + b * (whole + e) + THREAD * b * (large + low);
        for (int64_t i = 0; i < a->count; i++) {
            if (is_mamba)
                decode_mamba(a, a->blocks + i, a->scratch, own, &phase);
            else
                decode_mamba2(a, a->blocks + i, a->scratch, own, &phase);
        }
        for (int64_t j = 0; j < b; j++)
            decode_norm(a->residual + j * a->d, a->norm, (int)a->norm_type, a->d, a->eps,
                        own + j * a->d);
        decode_product(a->head, a->head_type, 0, a->d, my_part(a->vocab), own, a->d, b, a->logits,
                       a->vocab, 0);
    }
}
