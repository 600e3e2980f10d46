// Mamba-2's scan for inference, chunk by chunk (2405.21060 section 6), head by head.
//
// A chunk is CHUNK steps of one row. What all heads of a group see alike (B, C, and C_i . B_j) is made
// once a chunk; a head's state (n, p) and its part of the chunk stay in the cache.
#include "vector.h"

// a block of a product is TALL rows of BLOCK columns, which lie in registers
enum { CHUNK = 32, TALL = LANES == 16 ? 8 : 4, BLOCK = 2 * LANES };

typedef struct {
    const void *x, *dt, *B, *C;
    const float *A, *D, *bias, *scale, *first;
    void *y;
    float *last, *scratch;
    int64_t x_row, x_step, x_head, dt_row, dt_step, dt_head, B_row, B_step, B_group, C_row, C_step,
        C_group;
    int64_t rows, length, heads, size, groups, n, type, threads;
    double low_limit, high_limit;
} SsdArguments;

// scratch memory of a thread; sizes in floats
typedef struct {
    float *B, *C, *scores, *seen, *u, *late, *y, *state;
    int64_t p;
} SsdScratch;

INLINE SsdScratch ssd_scratch(const SsdArguments *a, Range range) {
    SsdScratch s = {.p = (a->size + BLOCK - 1) / BLOCK * BLOCK};
    int64_t own = 2 * CHUNK * a->n + 2 * CHUNK * CHUNK + 3 * CHUNK * s.p;
    s.B = a->scratch + THREAD * own;
    s.C = s.B + CHUNK * a->n;
    s.scores = s.C + CHUNK * a->n;
    s.seen = s.scores + CHUNK * CHUNK;
    s.u = s.seen + CHUNK * CHUNK;
    s.late = s.u + CHUNK * s.p;
    s.y = s.late + CHUNK * s.p;
    s.state = a->scratch + a->threads * own + range.from * a->n * s.p;
    return s;
}

// sums (side, BLOCK) += a b, a (side, k) with its own strides, b (k, stride_b)
INLINE void ssd_block(vec (*sums)[2], int side, const float *a, int64_t step_i, int64_t step_k,
                      const float *b, int64_t stride_b, int64_t from, int64_t to) {
    for (int64_t k = from; k < to; k++) {
        vec left = load(b + k * stride_b), right = load(b + k * stride_b + LANES);
        UNROLL for (int i = 0; i < side; i++) {
            float factor = a[i * step_i + k * step_k];
            sums[i][0] += left * factor;
            sums[i][1] += right * factor;
        }
    }
}

// B, C and dt * scale of a chunk, and C_i . B_j; B is 0 where a step is
INLINE void ssd_enter(const SsdArguments *a, SsdScratch s, int type, int64_t row, int64_t group,
                      int64_t t, int64_t steps) {
    int64_t n = a->n;
    for (int64_t i = 0; i < steps; i++) {
        int64_t at_B = row * a->B_row + (t + i) * a->B_step + group * a->B_group;
        int64_t at_C = row * a->C_row + (t + i) * a->C_step + group * a->C_group;
        int stands = a->scale && a->scale[row * a->length + t + i] == 0;
        for (int64_t k = 0; k < n; k++) {
            s.B[i * n + k] = stands ? 0 : one(a->B, at_B + k, type);
            s.C[i * n + k] = one(a->C, at_C + k, type);
        }
    }
    for (int64_t i = 0; i < steps; i++)
        for (int64_t j = 0; j <= i; j++) {
            vec sum = {0};
            for (int64_t k = 0; k < n; k += LANES)
                sum += get_some(s.C + i * n, k, F32, n - k) * get_some(s.B + j * n, k, F32, n - k);
            s.scores[i * CHUNK + j] = total_of(sum);
        }
}

INLINE void ssd_head(const SsdArguments *a, SsdScratch s, int type, int64_t row, int64_t head,
                     int64_t t, int64_t steps, float *state) {
    int64_t n = a->n, p = s.p;
    float step[CHUNK], total[CHUNK], rest[CHUNK], from_start[CHUNK], to_end[CHUNK];
    float bias = a->bias ? a->bias[head] : 0;
    for (int64_t i = 0; i < CHUNK; i++)
        step[i] = i >= steps ? 0
                             : bias + one(a->dt, row * a->dt_row + (t + i) * a->dt_step +
                                                     head * a->dt_head, type);
    for (int64_t i = 0; i < CHUNK; i += LANES) store(step + i, softplus_of(load(step + i)));
    // a sum of many steps must keep the digits of a small one: it is held in two floats
    double sum = 0;
    for (int64_t i = 0; i < CHUNK; i++) {
        float scale = a->scale && i < steps ? a->scale[row * a->length + t + i] : 1.0f;
        step[i] = step[i] < (float)a->low_limit ? (float)a->low_limit : step[i];
        step[i] = step[i] > (float)a->high_limit ? (float)a->high_limit : step[i];
        step[i] = scale == 0 || i >= steps ? 0 : step[i] * scale;
        sum += (double)(step[i] * (a->A[head] * LOG2_E));
        total[i] = (float)sum;
        rest[i] = (float)(sum - total[i]);
    }
    for (int64_t i = 0; i < CHUNK; i += LANES) {
        vec exponent = (total[CHUNK - 1] - load(total + i)) + (rest[CHUNK - 1] - load(rest + i));
        store(to_end + i, exp2_of(exponent));
        store(from_start + i, exp2_of(load(total + i)));
    }
    // u = step x, and what is left of it at the chunk's end; rows behind the last are zero
    for (int64_t i = 0; i < CHUNK; i++)
        for (int64_t c = 0; c < p; c += LANES) {
            vec u = {0};
            if (i < steps && step[i] != 0 && c < a->size)
                u = step[i] * get_some(a->x, row * a->x_row + (t + i) * a->x_step +
                                                 head * a->x_head + c, type, a->size - c);
            store(s.u + i * p + c, u);
            store(s.late + i * p + c, u * to_end[i]);
        }
    // step i sees C_i . B_j of each j <= i, decayed
    int64_t high = (steps + TALL - 1) / TALL * TALL;
    for (int64_t i = 0; i < high; i++)
        for (int64_t j = 0; j < i / TALL * TALL + TALL; j += LANES) {
            vec exponent = (total[i] - load(total + j)) + (rest[i] - load(rest + j));
            vec decay = exp2_of(exponent) * load(s.scores + i * CHUNK + j);
            for (int64_t k = 0; k < LANES; k++)
                s.seen[i * CHUNK + j + k] = j + k <= i && i < steps ? decay[k] : 0;
        }
    for (int64_t c = 0; c < p; c += BLOCK)
        for (int64_t i = 0; i < high; i += TALL) {
            vec sums[TALL][2] = {{{0}}};
            ssd_block(sums, TALL, s.C + i * n, n, 1, state + c, p, 0, n);
            UNROLL for (int k = 0; k < TALL; k++) {
                sums[k][0] *= from_start[i + k];
                sums[k][1] *= from_start[i + k];
            }
            ssd_block(sums, TALL, s.seen + i * CHUNK, CHUNK, 1, s.u + c, p, 0, i + TALL);
            UNROLL for (int k = 0; k < TALL; k++) {
                store(s.y + (i + k) * p + c, sums[k][0]);
                store(s.y + (i + k) * p + c + LANES, sums[k][1]);
            }
        }
    float passed = from_start[CHUNK - 1];
    for (int64_t k = 0; k < n; k += TALL)
        for (int64_t c = 0; c < p; c += BLOCK) {
            vec sums[TALL][2] = {{{0}}};
            int64_t side = n - k < TALL ? n - k : TALL;
            for (int64_t i = 0; i < side; i++) {
                sums[i][0] = load(state + (k + i) * p + c) * passed;
                sums[i][1] = load(state + (k + i) * p + c + LANES) * passed;
            }
            if (side == TALL)
                ssd_block(sums, TALL, s.B + k, 1, n, s.late + c, p, 0, steps);
            else
                for (int64_t i = 0; i < side; i++)
                    ssd_block(sums + i, 1, s.B + k + i, 1, n, s.late + c, p, 0, steps);
            for (int64_t i = 0; i < side; i++) {
                store(state + (k + i) * p + c, sums[i][0]);
                store(state + (k + i) * p + c + LANES, sums[i][1]);
            }
        }
    float D = a->D ? a->D[head] : 0;
    for (int64_t i = 0; i < steps; i++)
        for (int64_t c = 0; c < a->size; c += LANES) {
            int64_t left = a->size - c;
            vec y = load(s.y + i * p + c);
            if (a->D)
                y += D * get_some(a->x, row * a->x_row + (t + i) * a->x_step + head * a->x_head + c,
                                  type, left);
            put_some(a->y, ((row * a->length + t + i) * a->heads + head) * a->size + c, type, y,
                     left);
        }
}

INLINE void ssd_range(const SsdArguments *a, int type, Range range) {
    SsdScratch s = ssd_scratch(a, range);
    int64_t n = a->n, one_state = n * s.p, per_group = a->heads / a->groups;
    memset(s.seen, 0, sizeof(float) * CHUNK * CHUNK);
    memset(s.scores, 0, sizeof(float) * CHUNK * CHUNK);
    // products of the last rows of a chunk that is not full read what they do not use
    memset(s.C, 0, sizeof(float) * (size_t)(CHUNK * n));
    while (range.from < range.to) {
        int64_t row = range.from / a->heads, first = range.from % a->heads;
        int64_t count = a->heads - first < range.to - range.from ? a->heads - first
                                                                 : range.to - range.from;
        for (int64_t h = 0; h < count; h++)
            for (int64_t k = 0; k < n; k++)
                for (int64_t c = 0; c < s.p; c++) {
                    int64_t at = ((row * a->heads + first + h) * a->size + c) * n + k;
                    s.state[h * one_state + k * s.p + c] =
                        a->first && c < a->size ? a->first[at] : 0;
                }
        for (int64_t t = 0; t < a->length; t += CHUNK) {
            int64_t steps = a->length - t < CHUNK ? a->length - t : CHUNK, group = -1;
            for (int64_t h = 0; h < count; h++) {
                if ((first + h) / per_group != group) {
                    group = (first + h) / per_group;
                    ssd_enter(a, s, type, row, group, t, steps);
                }
                ssd_head(a, s, type, row, first + h, t, steps, s.state + h * one_state);
            }
        }
        for (int64_t h = 0; h < count; h++)
            for (int64_t c = 0; c < a->size; c++)
                for (int64_t k = 0; k < n; k++)
                    a->last[((row * a->heads + first + h) * a->size + c) * n + k] =
                        s.state[h * one_state + k * s.p + c];
        s.state += count * one_state;
        range.from += count;
    }
}

EXPORT void ssd(const void *block) {
    const SsdArguments *a = block;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows * a->heads);
        if (a->type == F32)
            ssd_range(a, F32, range);
        else
            ssd_range(a, BF16, range);
    }
}
