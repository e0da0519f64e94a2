"""Integer operations of generated code that need care: division, shifts and powers, none of which may trap."""

from __future__ import annotations

from fgrad.codegen.mathbase import V, where


def _divmod(a: V, b: V, signed: bool) -> tuple[V, V, V]:
    """(truncated quotient, remainder, whether b is 0). Dividing by 0 gives 0 and 0; by -1, the (wrapped) negative and 0."""
    zero = b.eq(0)
    if not signed:
        safe = where(zero, 1, b)
        q, r = V(a.b, a.b.udiv(a.v, safe.v)), V(a.b, a.b.urem(a.v, safe.v))
    else:
        # The smallest integer divided by -1 would trap.
        minus = b.eq(-1)
        safe = where(zero | minus, 1, b)
        q, r = V(a.b, a.b.sdiv(a.v, safe.v)), V(a.b, a.b.srem(a.v, safe.v))
        q = where(minus, -a, q)
    return where(zero, 0, q), where(zero, 0, r), zero


def _floordiv(a: V, b: V, signed: bool) -> V:
    q, r, _ = _divmod(a, b, signed)
    return where(r.ne(0) & ((r ^ b) < 0), q - 1, q) if signed else q


def _remainder(a: V, b: V, signed: bool) -> V:
    _, r, _ = _divmod(a, b, signed)
    return where(r.ne(0) & ((r ^ b) < 0), r + b, r) if signed else r


def _fmod(a: V, b: V, signed: bool) -> V:
    return _divmod(a, b, signed)[1]


FLOORED = {"floordiv": _floordiv, "remainder": _remainder, "fmod": _fmod}


def shift(op: str, a: V, count: V, signed: bool) -> V:
    """Shifts by the width or more (or by a negative count) leave 0, or the sign, as in NumPy."""
    width = a.type.width if hasattr(a.type, "width") else a.type.element.width
    over = V(a.b, a.b.icmp_unsigned(">=", count.v, a.const(width).v))
    if op == "shift_right_arithmetic" and signed:
        return a >> where(over, width - 1, count)
    safe = where(over, 0, count)
    return where(over, 0, a << safe if op == "shift_left" else a.lshr(safe))


def int_pow(base: V, exponent: V, signed: bool) -> V:
    """base**exponent, wrapped, by squaring. A negative exponent gives the truncated quotient: 0 unless base is 1 or -1."""
    width = base.type.width if hasattr(base.type, "width") else base.type.element.width
    result, power = base.const(1), base
    for bit in range(width - 1 if signed else width):
        result = where((exponent & (1 << bit)).ne(0), result * power, result)
        power = power * power
    if not signed:
        return result
    units = where(base.eq(1), 1, where(base.eq(-1), where((exponent & 1).ne(0), -1, base.const(1)), 0))
    return where(exponent < 0, units, result)
