"""softplus and its derivative, the same in all kernels: what prefill and decode round alike."""

import triton
import triton.language as tl

INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def reciprocal(v):
    """1 / v for v >= 1, to 1 ulp; 0 at infinity."""
    if INTERPRETED:
        return 1.0 / v
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [v], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def sigmoid(v):
    """1 / (1 + e^-v), float32, to 3 ulp; 0 below -88, NaN stays NaN."""
    if INTERPRETED:
        z = tl.exp2(v * -LOG2_E)
    else:  # beside 1, a subnormal number is nothing
        z = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=r,r", [v * -LOG2_E],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return reciprocal(1.0 + z)


@triton.jit
def softplus(v):
    """log(1 + e^v) and z = e^-|v|, float32; `slope` makes the derivative of both.

    log(1 + e^v) = max(v, 0) + log(1 + z), and log(1 + z) = 2 atanh(z / (2 + z)) as a series: the
    digits of a small e^v stay, and NaN stays NaN. Under the interpreter it errs by at most 5 / 2^24
    of the result, and for a negative v by 1.2 |v| / 2^24 more, from rounding v * log2(e).
    """
    z = tl.exp2(tl.abs(v) * -LOG2_E)
    r = z * reciprocal(2.0 + z)
    s = r * r
    series = 1.0 / 11.0 + s * (1.0 / 13.0)
    series = 1.0 / 9.0 + s * series
    series = 1.0 / 7.0 + s * series
    series = 1.0 / 5.0 + s * series
    series = 1.0 / 3.0 + s * series
    return tl.maximum(v, 0.0) + 2.0 * (r + r * (s * series)), z


@triton.jit
def slope(v, z):
    """The derivative of softplus at v: the sigmoid, with the digits of a small one."""
    return tl.where(v >= 0.0, 1.0, z) * reciprocal(1.0 + z)
