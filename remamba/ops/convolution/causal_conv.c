// The causal convolution with SiLU and its window, for inference: one pass over x.
#include "vector.h"

typedef struct {
    const void *x, *window;
    const float *weight, *bias;
    const int64_t *lengths;
    void *y, *after;
    int64_t x_row, x_step, rows, length, channels, width, silu, type, threads;
} ConvArguments;

// where input t of a row lies, counted from the window's end; NULL: it is zero
INLINE const char *conv_input(const ConvArguments *a, int type, int64_t row, int64_t t) {
    int64_t before = a->width - 1;
    if (t >= 0) return (const char *)a->x + (row * a->x_row + t * a->x_step) * size_of(type);
    if (!a->window) return NULL;
    return (const char *)a->window + (row * before + before + t) * a->channels * size_of(type);
}

// outputs of `left` channels from c on; inputs are those of the last `width` positions
INLINE vec conv_at(const ConvArguments *a, int type, int64_t width, const char *const *inputs,
                   int64_t c, int64_t left) {
    vec sum = a->bias ? get_some(a->bias, c, F32, left) : splat(0.0f);
    UNROLL for (int64_t j = 0; j < width; j++)
        if (inputs[j])
            sum += get_some(a->weight, j * a->channels + c, F32, left) *
                   get_some(inputs[j], c, type, left);
    return a->silu ? silu_of(sum) : sum;
}

INLINE void conv_range(const ConvArguments *a, int type, int64_t width, Range range) {
    int64_t channels = a->channels, whole = channels / LANES * LANES;
    const char *inputs[width];
    for (int64_t at = range.from; at < range.to; at++) {
        int64_t row = at / a->length, t = at % a->length;
        for (int64_t j = 0; j < width; j++)
            inputs[j] = conv_input(a, type, row, t - width + 1 + j);
        for (int64_t c = 0; c < whole; c += LANES)
            put(a->y, at * channels + c, type, conv_at(a, type, width, inputs, c, LANES));
        if (whole < channels) {
            int64_t left = channels - whole;
            vec y = conv_at(a, type, width, inputs, whole, left);
            put_some(a->y, at * channels + whole, type, y, left);
        }
    }
}

EXPORT void causal_conv(const void *block) {
    const ConvArguments *a = block;
    int64_t before = a->width - 1, bytes = a->channels * size_of((int)a->type);
    for (int64_t row = 0; row < a->rows; row++) {
        int64_t end = a->lengths && a->lengths[row] < a->length ? a->lengths[row] : a->length;
        for (int64_t j = 0; j < before; j++) {
            const char *input = conv_input(a, (int)a->type, row, end - before + j);
            char *to = (char *)a->after + (row * before + j) * bytes;
            if (input)
                memcpy(to, input, bytes);
            else
                memset(to, 0, bytes);
        }
    }
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        Range range = my_part(a->rows * a->length);
        if (a->type == F32 && a->width == 4)
            conv_range(a, F32, 4, range);
        else
            conv_range(a, (int)a->type, a->width, range);
    }
}
