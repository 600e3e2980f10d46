// The root-mean-square norms, for inference: a row stays in the cache between its two passes.
#include "vector.h"

typedef struct {
    const void *x, *residual, *weight;
    void *y, *total;
    int64_t x_row, residual_row, rows, size, x_type, residual_type, weight_type, total_type;
    float eps;
    int32_t threads;
} NormArguments;

// what is normed, `left` values of it; y is of the weight's type, and so is what is normed
INLINE vec norm_input(const NormArguments *a, int64_t row, int64_t i, int x_type, int weight_type,
                      int64_t left) {
    int64_t at = row * a->size + i;
    vec v = get_some(a->x, row * a->x_row + i, x_type, left);
    if (a->residual) {
        v += get_some(a->residual, row * a->residual_row + i, (int)a->residual_type, left);
        put_some(a->total, at, (int)a->total_type, v, left);
        v = get_some(a->total, at, (int)a->total_type, left);
    }
    put_some(a->y, at, weight_type, v, left);
    return get_some(a->y, at, weight_type, left);
}

INLINE void norm_output(const NormArguments *a, int64_t row, int64_t i, int weight_type, vec factor,
                        int64_t left) {
    int64_t at = row * a->size + i;
    vec v = get_some(a->y, at, weight_type, left) * factor;
    if (a->weight) v *= get_some(a->weight, i, weight_type, left);
    put_some(a->y, at, weight_type, v, left);
}

INLINE void norm_row(const NormArguments *a, int64_t row, int x_type, int weight_type) {
    int64_t size = a->size, whole = size / LANES * LANES, left = size - whole;
    vec squares = {0};
    for (int64_t i = 0; i < whole; i += LANES) {
        vec v = norm_input(a, row, i, x_type, weight_type, LANES);
        squares += v * v;
    }
    if (left) {
        vec v = norm_input(a, row, whole, x_type, weight_type, left);
        squares += v * v;
    }
    vec factor = splat(1.0f / sqrtf(total_of(squares) / (float)size + a->eps));
    for (int64_t i = 0; i < whole; i += LANES)
        norm_output(a, row, i, weight_type, factor, LANES);
    if (left) norm_output(a, row, whole, weight_type, factor, left);
}

EXPORT void rms_norm(const void *block) {
    const NormArguments *a = block;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows);
        for (int64_t row = range.from; row < range.to; row++) {
            if (a->x_type == F32 && a->weight_type == F32)
                norm_row(a, row, F32, F32);
            else
                norm_row(a, row, (int)a->x_type, (int)a->weight_type);
        }
    }
}

typedef struct {
    const void *y, *z, *weight;
    void *out;
    int64_t y_row, z_row, rows, size, groups, type, weight_type, out_type;
    float eps;
    int32_t threads;
} GatedArguments;

// y silu(z), `left` values from i on
INLINE vec gated_input(const GatedArguments *a, int64_t row, int64_t i, int type, int64_t left) {
    vec z = get_some(a->z, row * a->z_row + i, type, left);
    return get_some(a->y, row * a->y_row + i, type, left) * silu_of(z);
}

INLINE void gated_output(const GatedArguments *a, int64_t row, int64_t i, int type, int weight_type,
                         vec v, int64_t left) {
    if (type != F32) {  // the quotient is rounded before the product
        uint16_t rounded[LANES];
        put(rounded, 0, type, v);
        v = get(rounded, 0, type);
    }
    v *= get_some(a->weight, i, weight_type, left);
    put_some(a->out, row * a->size + i, (int)a->out_type, v, left);
}

// the gated values of a group lie in `gated`, which has whole vectors, between the passes
INLINE void gated_row(const GatedArguments *a, int64_t row, int type, int weight_type,
                      float *gated) {
    int64_t size = a->size / a->groups, whole = size / LANES * LANES, left = size - whole;
    for (int64_t first = 0; first < a->size; first += size) {
        vec squares = {0};
        for (int64_t i = 0; i < whole; i += LANES) {
            vec v = gated_input(a, row, first + i, type, LANES);
            squares += v * v;
            store(gated + i, v);
        }
        if (left) {
            vec v = gated_input(a, row, first + whole, type, left);
            squares += v * v;
            store(gated + whole, v);
        }
        vec factor = splat(1.0f / sqrtf(total_of(squares) / (float)size + a->eps));
        for (int64_t i = 0; i < whole; i += LANES)
            gated_output(a, row, first + i, type, weight_type, load(gated + i) * factor, LANES);
        if (left)
            gated_output(a, row, first + whole, type, weight_type, load(gated + whole) * factor,
                         left);
    }
}

EXPORT void gated_rms_norm(const void *block) {
    const GatedArguments *a = block;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows);
        float gated[a->size / a->groups + LANES];
        for (int64_t row = range.from; row < range.to; row++) {
            if (a->type == F32 && a->weight_type == F32)
                gated_row(a, row, F32, F32, gated);
            else
                gated_row(a, row, (int)a->type, (int)a->weight_type, gated);
        }
    }
}
