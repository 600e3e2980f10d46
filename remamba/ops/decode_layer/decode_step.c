// A whole decode step in one call: blocks, final norm and head for one token of a few rows.
//
// The threads share every product's rows of weights; between products they wait for one another.
// What is small (a norm, a gate) each thread computes for itself, which costs less than waiting.
#include "vector.h"

// of a batch; rows of weights that a product goes through side by side
enum { MOST_ROWS = 16, SIDE = 4 };

typedef struct {
    const void *norm, *in_proj, *in_bias, *conv, *conv_bias, *dt_bias, *A_log, *D, *out_proj,
        *out_bias, *x_proj, *dt_proj, *gated_norm;
    void *window;
    float *state;
    int64_t dt_type, A_type, D_type;
    double norm_eps, mixer_eps, low_limit, high_limit;
} Layer;

typedef struct {
    const void *first, *norm, *head;
    void *logits;
    float *scratch;
    int64_t first_type, head_type, norm_type, type, window_type;
    int64_t layers, rows, hidden, channels, projected, width, n, rank, heads, groups, vocabulary;
    int64_t threads;
    double norm_eps;
} DecodeArguments;

// a row of floats in scratch memory has whole vectors
INLINE int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

typedef struct {
    float *hidden, *projected, *low, *y, *own;
    int64_t d, p, l, e;
} Scratch;

INLINE Scratch scratch_of(const DecodeArguments *a) {
    int64_t projected = a->projected > a->hidden ? a->projected : a->hidden;
    Scratch s = {.d = padded(a->hidden), .p = padded(projected),
                 .l = padded(a->rank + 2 * a->n), .e = padded(a->channels)};
    s.hidden = a->scratch;
    s.projected = s.hidden + a->rows * s.d;
    s.low = s.projected + a->rows * s.p;
    s.y = s.low + a->rows * s.l;
    s.own = s.y + a->rows * s.e + THREAD * (a->rows * (s.d > s.e ? s.d : s.e) + LANES);
    return s;
}

#ifdef _OPENMP
#define WAIT _Pragma("omp barrier")
#else
#define WAIT
#endif

// this thread's part of a product's rows of weights
INLINE Range my_rows(int64_t rows) {
    Range part = my_part((rows + SIDE - 1) / SIDE);
    part.from *= SIDE;
    part.to = part.to * SIDE < rows ? part.to * SIDE : rows;
    return part;
}

// y (rows, stride_y) at `part` = x (rows, stride_x) W^T + bias, for `side` rows of W at once
INLINE void product_side(const void *W, const void *bias, int type, int64_t inputs, int64_t i,
                         int side, const float *x, int64_t stride_x, float *y, int64_t stride_y,
                         int rows) {
    vec sums[SIDE][2] = {{{0}}};
    int64_t whole = inputs / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES)
        UNROLL for (int j = 0; j < side; j++) {
            vec w = get(W, (i + j) * inputs + k, type);
            UNROLL for (int r = 0; r < rows; r++) sums[j][r] += w * load(x + r * stride_x + k);
        }
    UNROLL for (int j = 0; j < side && whole < inputs; j++) {
        vec w = get_some(W, (i + j) * inputs + whole, type, inputs - whole);
        UNROLL for (int r = 0; r < rows; r++) sums[j][r] += w * load(x + r * stride_x + whole);
    }
    UNROLL for (int j = 0; j < side; j++)
        UNROLL for (int r = 0; r < rows; r++)
            y[r * stride_y + i + j] = total_of(sums[j][r]) + (bias ? one(bias, i + j, type) : 0);
}

static void product(const void *W, const void *bias, int type, int64_t inputs, Range part,
                    const float *x, int64_t stride_x, float *y, int64_t stride_y, int64_t rows) {
#define PRODUCT(TYPE, COUNT, ROWS)                                                              \
    product_side(W, bias, TYPE, inputs, i, COUNT, x + r * stride_x, stride_x, y + r * stride_y, \
                 stride_y, ROWS)
    for (int64_t i = part.from; i < part.to;) {
        int is_whole = part.to - i >= SIDE;
        for (int64_t r = 0; r < rows;) {
            int pair = rows - r >= 2;
            if (type == F32) {
                if (is_whole && pair) PRODUCT(F32, SIDE, 2);
                else if (is_whole) PRODUCT(F32, SIDE, 1);
                else if (pair) PRODUCT(F32, 1, 2);
                else PRODUCT(F32, 1, 1);
            } else {
                if (is_whole && pair) PRODUCT(BF16, SIDE, 2);
                else if (is_whole) PRODUCT(BF16, SIDE, 1);
                else if (pair) PRODUCT(BF16, 1, 2);
                else PRODUCT(BF16, 1, 1);
            }
            r += pair ? 2 : 1;
        }
        i += is_whole ? SIDE : 1;
    }
}

// to (size) = x / rms(x) * weight, weight 1 where there is none; zeros behind it, up to whole vectors
INLINE void norm_into(float *to, const float *x, int64_t size, const void *weight, int type,
                      double eps) {
    vec squares = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        vec v = get_some(x, i, F32, size - i);
        squares += v * v;
    }
    vec factor = splat(1.0f / sqrtf(total_of(squares) / (float)size + (float)eps));
    for (int64_t i = 0; i < size; i += LANES) {
        vec v = get_some(x, i, F32, size - i) * factor;
        store(to + i, weight ? v * get_some(weight, i, type, size - i) : v);
    }
}

// the convolution and SiLU of one channel range of what was projected, which the window then holds
INLINE void convolve(const DecodeArguments *a, const Layer *w, Scratch s, int64_t first,
                     int64_t count, Range part) {
    // channel c of the convolution was projected to row first + c
    int64_t from = part.from > first ? part.from - first : 0;
    int64_t to = part.to < first + count ? part.to - first : count;
    int type = (int)a->type, held = (int)a->window_type, before = (int)a->width - 1;
    for (int64_t r = 0; r < a->rows; r++) {
        float *x = s.projected + r * s.p + first;
        for (int64_t c = from; c < to; c++) {
            float sum = w->conv_bias ? one(w->conv_bias, c, type) : 0, now = x[c];
            for (int j = 0; j < before; j++) {
                int64_t at = (r * before + j) * count + c;
                sum += one(w->conv, c * a->width + j, type) * one(w->window, at, held);
                if (j > 0) put_one(w->window, at - count, held, one(w->window, at, held));
            }
            x[c] = sum + one(w->conv, c * a->width + before, type) * now;
            if (before) put_one(w->window, (r * before + before - 1) * count + c, held, now);
        }
        for (int64_t c = from; c < to; c += LANES)
            put_some(x, c, F32, silu_of(get_some(x, c, F32, to - c)), to - c);
    }
}

// hidden (rows) += y W^T + bias, for this thread's part
INLINE void add_product(const DecodeArguments *a, const Layer *w, Scratch s, const float *y) {
    Range part = my_rows(a->hidden);
    product(w->out_proj, w->out_bias, (int)a->type, a->channels, part, y, s.e, s.projected, s.p,
            a->rows);
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t i = part.from; i < part.to; i++)
            s.hidden[r * s.d + i] += s.projected[r * s.p + i];
}

// the state of channel c moves on, and y takes C . h; B, C (rows, stride)
INLINE void mamba_channel(const DecodeArguments *a, const Layer *w, Scratch s, int64_t c,
                          const float *B, const float *C, int64_t stride) {
    int64_t n = a->n, rows = a->rows;
    vec sums[MOST_ROWS] = {{0}};
    for (int64_t k = 0; k < n; k += LANES) {
        int64_t left = n - k;
        vec rate = exp_of(get_some(w->A_log, c * n + k, (int)w->A_type, left)) * -LOG2_E;
        for (int64_t r = 0; r < rows; r++) {
            float step = s.y[r * s.e + c], x = s.projected[r * s.p + c];
            int64_t at = (r * a->channels + c) * n + k;
            vec h = get_some(w->state, at, F32, left) * exp2_of(rate * step);
            h += get_some(B + r * stride, k, F32, left) * (step * x);
            put_some(w->state, at, F32, h, left);
            sums[r] += h * get_some(C + r * stride, k, F32, left);
        }
    }
    float D = one(w->D, c, (int)w->D_type);
    for (int64_t r = 0; r < rows; r++)
        s.y[r * s.e + c] = total_of(sums[r]) + D * s.projected[r * s.p + c];
}

static void mamba_layer(const DecodeArguments *a, const Layer *w) {
    Scratch s = scratch_of(a);
    int64_t rows = a->rows, e = a->channels, n = a->n, low = a->rank + 2 * n;
    int type = (int)a->type;
    for (int64_t r = 0; r < rows; r++)
        norm_into(s.own + r * s.d, s.hidden + r * s.d, a->hidden, w->norm, type, w->norm_eps);
    Range part = my_rows(2 * e);
    product(w->in_proj, w->in_bias, type, a->hidden, part, s.own, s.d, s.projected, s.p, rows);
    convolve(a, w, s, 0, e, part);
    WAIT
    // x as the next product reads it, with zeros behind
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < e; i += LANES)
            store(s.own + r * s.e + i, get_some(s.projected, r * s.p + i, F32, e - i));
    product(w->x_proj, NULL, type, e, my_rows(low), s.own, s.e, s.low, s.l, rows);
    WAIT
    // dt, B and C apart, each with zeros behind; Falcon-Mamba norms them
    int64_t rank = padded(a->rank), state = padded(n), stride = rank + 2 * state;
    float split[rows * stride];
    for (int64_t r = 0; r < rows; r++) {
        const float *from = s.low + r * s.l;
        float *to = split + r * stride;
        int64_t sizes[3] = {a->rank, n, n};
        for (int i = 0; i < 3; i++) {
            if (w->mixer_eps >= 0) {
                norm_into(to, from, sizes[i], NULL, type, w->mixer_eps);
            } else {
                for (int64_t k = 0; k < sizes[i]; k += LANES)
                    store(to + k, get_some(from, k, F32, sizes[i] - k));
            }
            from += sizes[i];
            to += padded(sizes[i]);
        }
    }
    part = my_rows(e);
    product(w->dt_proj, NULL, type, a->rank, part, split, stride, s.y, s.e, rows);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = part.from; c < part.to; c += LANES) {
            int64_t left = part.to - c;
            vec v = get_some(s.y, r * s.e + c, F32, left);
            if (w->dt_bias) v += get_some(w->dt_bias, c, (int)w->dt_type, left);
            put_some(s.y, r * s.e + c, F32, softplus_of(v), left);
        }
    for (int64_t c = part.from; c < part.to; c++)
        mamba_channel(a, w, s, c, split + rank, split + rank + state, stride);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = part.from; c < part.to; c += LANES) {
            int64_t left = part.to - c;
            vec z = get_some(s.projected, r * s.p + e + c, F32, left);
            put_some(s.y, r * s.e + c, F32,
                     get_some(s.y, r * s.e + c, F32, left) * silu_of(z), left);
        }
    WAIT
    add_product(a, w, s, s.y);
    WAIT
}

// the states of head h of row r move on; s.y takes (C . h + D x) silu(z)
INLINE void mamba2_head(const DecodeArguments *a, const Layer *w, Scratch s, int64_t r, int64_t h) {
    int64_t n = a->n, e = a->channels, size = e / a->heads, gn = a->groups * n;
    const float *projected = s.projected + r * s.p;
    const float *x = projected + e + h * size;
    const float *B = projected + 2 * e + h / (a->heads / a->groups) * n, *C = B + gn;
    float dt = projected[2 * e + 2 * gn + h] + one(w->dt_bias, h, (int)w->dt_type);
    float step = softplus_of(splat(dt))[0];
    step = fminf(fmaxf(step, (float)w->low_limit), (float)w->high_limit);
    vec rate = exp_of(splat(one(w->A_log, h, (int)w->A_type)));
    vec decay = exp2_of(rate * (-LOG2_E * step));
    float D = one(w->D, h, (int)w->D_type);
    float *y = s.y + r * s.e + h * size;
    for (int64_t i = 0; i < size; i++) {
        float *state = w->state + ((r * a->heads + h) * size + i) * n, added = step * x[i];
        vec sum = {0};
        for (int64_t k = 0; k < n; k += LANES) {
            int64_t left = n - k;
            vec v = get_some(state, k, F32, left) * decay + get_some(B, k, F32, left) * added;
            put_some(state, k, F32, v, left);
            sum += v * get_some(C, k, F32, left);
        }
        y[i] = total_of(sum) + D * x[i];
    }
    for (int64_t i = 0; i < size; i += LANES) {
        vec z = get_some(projected, h * size + i, F32, size - i);
        put_some(y, i, F32, get_some(y, i, F32, size - i) * silu_of(z), size - i);
    }
}

static void mamba2_layer(const DecodeArguments *a, const Layer *w) {
    Scratch s = scratch_of(a);
    int64_t rows = a->rows, e = a->channels;
    int type = (int)a->type;
    for (int64_t r = 0; r < rows; r++)
        norm_into(s.own + r * s.d, s.hidden + r * s.d, a->hidden, w->norm, type, w->norm_eps);
    Range part = my_rows(a->projected);
    product(w->in_proj, w->in_bias, type, a->hidden, part, s.own, s.d, s.projected, s.p, rows);
    convolve(a, w, s, e, e + 2 * a->groups * a->n, part);
    WAIT
    part = my_part(rows * a->heads);
    for (int64_t i = part.from; i < part.to; i++) mamba2_head(a, w, s, i / a->heads, i % a->heads);
    WAIT
    int64_t size = e / a->groups;
    for (int64_t r = 0; r < rows; r++) {
        float *to = s.own + r * s.e;
        if (e % LANES) store(to + e / LANES * LANES, splat(0.0f));
        for (int64_t g = 0; g < a->groups; g++) {
            // a group that ends within a vector writes zeros where the next one begins
            int64_t at = g * size;
            norm_into(to + at, s.y + r * s.e + at, size,
                      (const char *)w->gated_norm + at * size_of(type), type, w->mixer_eps);
        }
    }
    add_product(a, w, s, s.own);
    WAIT
}

EXPORT void decode_step(const void *block) {
    const DecodeArguments *a = block;
    const Layer *layers = (const Layer *)(a + 1);
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Scratch s = scratch_of(a);
        Range part = my_part(a->rows * a->hidden);
        for (int64_t i = part.from; i < part.to; i++)
            s.hidden[i / a->hidden * s.d + i % a->hidden] = one(a->first, i, (int)a->first_type);
        // products read whole vectors of y
        for (int64_t r = 0; r < a->rows && a->channels % LANES && THREAD == 0; r++)
            store(s.y + r * s.e + s.e - LANES, splat(0.0f));
        WAIT
        for (int64_t i = 0; i < a->layers; i++) {
            if (a->heads)
                mamba2_layer(a, layers + i);
            else
                mamba_layer(a, layers + i);
        }
        for (int64_t r = 0; r < a->rows; r++)
            norm_into(s.own + r * s.d, s.hidden + r * s.d, a->hidden, a->norm, (int)a->norm_type,
                      a->norm_eps);
        product(a->head, NULL, (int)a->head_type, a->hidden, my_rows(a->vocabulary), s.own, s.d,
                a->logits, a->vocabulary, a->rows);
    }
}
