// One step of either scan, for inference; a channel's states lie side by side.
#include "vector.h"

typedef struct {
    const void *x, *dt, *z, *B, *C;
    const float *A, *D, *bias, *scale, *state;
    void *y;
    float *after;
    int64_t x_row, x_head, dt_row, z_row, B_row, B_group, C_row, C_group;
    int64_t rows, heads, size, groups, n, type, threads;
    double low_limit, high_limit;
} StepArguments;

// h = h * decay + u B and C . h, for a channel's n states
INLINE float state_step(const StepArguments *a, int type, int64_t at, const float *A, float step,
                        float u, int64_t at_B, int64_t at_C, float decay) {
    vec sum = {0};
    for (int64_t k = 0; k < a->n; k += LANES) {
        int64_t left = a->n - k;
        vec h = get_some(a->state, at + k, F32, left);
        h *= A ? exp2_of(get_some(A, k, F32, left) * LOG2_E * step) : splat(decay);
        if (u != 0) h += u * get_some(a->B, at_B + k, type, left);
        put_some(a->after, at + k, F32, h, left);
        sum += h * get_some(a->C, at_C + k, type, left);
    }
    return total_of(sum);
}

INLINE float step_of(const StepArguments *a, int type, int64_t row, int64_t c) {
    float v = one(a->dt, row * a->dt_row + c, type) + (a->bias ? a->bias[c] : 0);
    float step = softplus_of(splat(v))[0];
    step = step < (float)a->low_limit ? (float)a->low_limit : step;
    step = step > (float)a->high_limit ? (float)a->high_limit : step;
    float scale = a->scale ? a->scale[row] : 1.0f;
    return scale == 0 ? 0 : step * scale;
}

// what a step of 0 must not read may be no number
INLINE float added_by(float step, float x) { return step == 0 ? 0 : step * x; }

EXPORT void selective_state_update(const void *block) {
    const StepArguments *a = block;
    int type = (int)a->type;
    int64_t channels = a->heads;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows * channels);
        for (int64_t i = range.from; i < range.to; i++) {
            int64_t row = i / channels, c = i % channels;
            float step = step_of(a, type, row, c), x = one(a->x, row * a->x_row + c, type);
            float y = state_step(a, type, i * a->n, a->A + c * a->n, step, added_by(step, x),
                                 row * a->B_row, row * a->C_row, 0);
            if (a->D) y += a->D[c] * x;
            if (a->z) y *= silu_of(splat(one(a->z, row * a->z_row + c, type)))[0];
            put_one(a->y, i, type, y);
        }
    }
}

EXPORT void ssd_state_update(const void *block) {
    const StepArguments *a = block;
    int type = (int)a->type;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows * a->heads);
        for (int64_t i = range.from; i < range.to; i++) {
            int64_t row = i / a->heads, head = i % a->heads;
            int64_t group = head / (a->heads / a->groups);
            float step = step_of(a, type, row, head);
            float decay = exp2_of(splat(step * a->A[head] * LOG2_E))[0];
            for (int64_t c = 0; c < a->size; c++) {
                float x = one(a->x, row * a->x_row + head * a->x_head + c, type);
                float y = state_step(a, type, (i * a->size + c) * a->n, NULL, step,
                                     added_by(step, x), row * a->B_row + group * a->B_group,
                                     row * a->C_row + group * a->C_group, decay);
                if (a->D) y += a->D[head] * x;
                put_one(a->y, i * a->size + c, type, y);
            }
        }
    }
}
