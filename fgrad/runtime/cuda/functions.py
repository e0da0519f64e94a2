"""Scalar operations of kernels that are written in Python, over the intrinsics of `adapter.py` (or of `simulator.py`).

NaN and infinity are treated as in NumPy. `one(x)` and `zero(x)` are constants in the type of `x`: a bare 1 would widen
the result.
"""

DEVICE_FUNCTIONS = """
def maximum(a, b):  # NaN wins
    return a if a > b or a != a else b

def minimum(a, b):
    return a if a < b or a != a else b

def fmax(a, b):  # the other one if either is NaN
    return a if a > b or b != b else b

def fmin(a, b):
    return a if a < b or b != b else b

def isnan(x):
    return x != x

def isinf(x):
    return abs(x) == inf

def isfinite(x):
    return abs(x) < inf

def sign(x):
    return x if x != x else one(x) if x > zero(x) else -one(x) if x < zero(x) else zero(x)

def logaddexp(a, b):
    if a == b:
        return a + log(one(a) + one(a))
    return maximum(a, b) + log1p(exp(-abs(a - b)))

def float_remainder(a, b):
    r = fmod(a, b)
    if r == zero(r):
        return copysign(r, b)
    return r + b if (r < zero(r)) != (b < zero(b)) else r

def float_floordiv(a, b):  # from the remainder, so that floordiv(a, b)*b + remainder(a, b) is a
    if b == zero(b):
        return a / b
    r = fmod(a, b)
    q = (a - r) / b
    if r != zero(r) and (r < zero(r)) != (b < zero(b)):
        q -= one(q)
    if q == zero(q):
        return copysign(q, a / b)
    down = floor(q)
    return down + one(q) if q - down > one(q) / (one(q) + one(q)) else down

def int_floordiv(a, b):  # zero for a division by zero, as in NumPy
    return a // b if b != zero(b) else zero(a)

def int_remainder(a, b):
    return a % b if b != zero(b) else zero(a)

def int_fmod(a, b):  # the sign of a, by way of Python's remainder, which has that of b
    if b == zero(b):
        return zero(a)
    r = a % b
    return r - b if r != zero(r) and (r < zero(r)) != (a < zero(a)) else r

def int_pow(a, b):
    result = one(a)
    if b < zero(b):
        return result if a == one(a) else zero(a)
    while b > zero(b):
        if b & 1:
            result = result * a
        a = a * a
        b = b >> 1
    return result

def digamma(x):  # float64: reflection, recurrence up to 10, then the asymptotic series
    if x != x or x == inf:
        return x
    if x == 0.0:
        return -copysign(inf, x)
    if x == -inf or (x < 0.0 and x == floor(x)):
        return nan
    result = 0.0
    if x < 0.0:
        result = -3.141592653589793 / tan(3.141592653589793 * (x - floor(x)))
        x = 1.0 - x
    while x < 10.0:
        result -= 1.0 / x
        x += 1.0
    f = 1.0 / (x * x)
    tail = 1.0 / 240.0 - f * (1.0 / 132.0 - f * (691.0 / 32760.0 - f / 12.0))
    series = f * (1.0 / 12.0 - f * (1.0 / 120.0 - f * (1.0 / 252.0 - f * tail)))
    return result + log(x) - 0.5 / x - series

def round_half(x):
    return from_half(to_half(x))

def round_bfloat(x):
    return from_bfloat(to_bfloat(x))
"""

# From floats: NaN becomes 0, and what does not fit the nearest that does. (Out of range, the machine's conversions differ.)
for _bits in (8, 16, 32, 64):
    for _name, _low, _limit in (
        (f"int{_bits}", -(2 ** (_bits - 1)), 2 ** (_bits - 1)),
        (f"uint{_bits}", 0, 2**_bits),
    ):
        DEVICE_FUNCTIONS += f"""
def to_{_name}(x):
    if x != x:
        return {_name}(0)
    if x <= {float(_low)!r}:
        return {_name}({_low})
    return {_name}({_limit - 1}) if x >= {float(_limit)!r} else {_name}(x)
"""

NAMES = tuple(line[4 : line.index("(")] for line in DEVICE_FUNCTIONS.splitlines() if line.startswith("def "))
