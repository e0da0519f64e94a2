"""Values of generated code with Python operators, for writing straight-line mathematics.

`V` wraps one LLVM value, scalar or vector, together with the builder that its instructions go to, so that a
function of :mod:`fgrad.codegen.mathlib` reads like the formula it implements::

    n = rint(x * LOG2E)
    r = fma(n, -LN2_HI, x)

prints as ``fmul``, ``llvm.rint``, ``llvm.fmuladd``: never a call of a C function, and a branch (`rarely`) only around what few
arguments need. Python numbers are converted to constants of the other operand's type (splat for
a vector). No instruction carries fast-math flags: the error-free transformations below depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

import llvmlite.ir as ir

from fgrad.codegen.target import TargetInfo, host

Number = Union["V", float, int]


@dataclass(frozen=True)
class Format:
    """The layout of one IEEE 754 binary format."""

    width: int
    mantissa: int
    bias: int
    max_exp: int
    sub_exp: int

    @property
    def int_type(self) -> ir.Type:
        return ir.IntType(self.width)


F32 = Format(32, 23, 127, 128, -149)
F64 = Format(64, 52, 1023, 1024, -1074)


def element_type(ty: ir.Type) -> ir.Type:
    """The scalar type of a scalar or vector type."""
    return ty.element if isinstance(ty, ir.VectorType) else ty


def like(ty: ir.Type, element: ir.Type) -> ir.Type:
    """`element` in the shape (scalar, or vector of so many lanes) of `ty`."""
    return ir.VectorType(element, ty.count) if isinstance(ty, ir.VectorType) else element


def splat(value: float | int, ty: ir.Type) -> ir.Constant:
    """The constant `value` of scalar or vector type `ty`."""
    element = element_type(ty)
    if isinstance(element, ir.IntType):
        value = int(value) & ((1 << element.width) - 1)
    else:
        value = float(value)
    return ir.Constant(ty, [value] * ty.count if isinstance(ty, ir.VectorType) else value)


def _suffix(ty: ir.Type) -> str:
    if isinstance(ty, ir.VectorType):
        return f"v{ty.count}{_suffix(ty.element)}"
    if isinstance(ty, ir.IntType):
        return f"i{ty.width}"
    return ty.intrinsic_name


def intrinsic(
    builder: ir.IRBuilder,
    name: str,
    result: ir.Type,
    args: Sequence[ir.Value],
    overloads: Sequence[ir.Type] | None = None,
    fastmath: Sequence[str] = (),
) -> ir.Value:
    """Call the LLVM intrinsic ``llvm.<name>``, overloaded on `overloads` (default: the result type)."""
    full = ".".join(["llvm", name, *(_suffix(t) for t in (overloads if overloads is not None else [result]))])
    module = builder.module
    function = module.globals.get(full)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, [a.type for a in args]), full)
    return builder.call(function, args, fastmath=fastmath)


class V:
    """One LLVM value with operators. Comparisons of floats are ordered (false for NaN) except `ne`."""

    __slots__ = ("b", "v")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: ir.IRBuilder, value: ir.Value):
        self.b, self.v = builder, value

    # -- types ---------------------------------------------------------------------------------------------
    @property
    def type(self) -> ir.Type:
        return self.v.type

    @property
    def is_float(self) -> bool:
        return not isinstance(element_type(self.v.type), ir.IntType)

    @property
    def format(self) -> Format:
        element = element_type(self.v.type)
        width = (
            element.width
            if isinstance(element, ir.IntType)
            else (64 if isinstance(element, ir.DoubleType) else 32)
        )
        return F64 if width == 64 else F32

    @property
    def f32(self) -> bool:
        """Whether this is a float32: functions hold one set of coefficients for each precision."""
        return self.format is F32

    def const(self, value: float | int) -> V:
        return V(self.b, splat(value, self.v.type))

    def _raw(self, other: Number) -> ir.Value:
        return other.v if isinstance(other, V) else splat(other, self.v.type)

    # -- arithmetic ----------------------------------------------------------------------------------------
    def _binary(self, other: Number, for_float: str, for_int: str, swap: bool = False) -> V:
        a, b = self.v, self._raw(other)
        if swap:
            a, b = b, a
        return V(self.b, getattr(self.b, for_float if self.is_float else for_int)(a, b))

    def __add__(self, other: Number) -> V:
        return self._binary(other, "fadd", "add")

    __radd__ = __add__

    def __sub__(self, other: Number) -> V:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: Number) -> V:
        return self._binary(other, "fsub", "sub", swap=True)

    def __mul__(self, other: Number) -> V:
        return self._binary(other, "fmul", "mul")

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> V:
        return V(self.b, self.b.fdiv(self.v, self._raw(other)))

    def __rtruediv__(self, other: Number) -> V:
        return V(self.b, self.b.fdiv(self._raw(other), self.v))

    def __neg__(self) -> V:
        return V(self.b, self.b.fneg(self.v) if self.is_float else self.b.neg(self.v))

    def __abs__(self) -> V:
        return self.call("fabs")

    # -- integers and masks ----------------------------------------------------------------------------------
    def __and__(self, other: Number) -> V:
        return V(self.b, self.b.and_(self.v, self._raw(other)))

    def __or__(self, other: Number) -> V:
        return V(self.b, self.b.or_(self.v, self._raw(other)))

    def __xor__(self, other: Number) -> V:
        return V(self.b, self.b.xor(self.v, self._raw(other)))

    def __invert__(self) -> V:
        return V(self.b, self.b.not_(self.v))

    def __lshift__(self, other: Number) -> V:
        return V(self.b, self.b.shl(self.v, self._raw(other)))

    def __rshift__(self, other: Number) -> V:
        """Arithmetic shift; `lshr` is the logical one."""
        return V(self.b, self.b.ashr(self.v, self._raw(other)))

    def lshr(self, other: Number) -> V:
        return V(self.b, self.b.lshr(self.v, self._raw(other)))

    # -- comparisons -----------------------------------------------------------------------------------------
    def _compare(self, op: str, other: Number) -> V:
        b = self._raw(other)
        if not self.is_float:
            return V(self.b, self.b.icmp_signed(op, self.v, b))
        emit = self.b.fcmp_unordered if op == "!=" else self.b.fcmp_ordered
        return V(self.b, emit(op, self.v, b))

    def __lt__(self, other: Number) -> V:
        return self._compare("<", other)

    def __le__(self, other: Number) -> V:
        return self._compare("<=", other)

    def __gt__(self, other: Number) -> V:
        return self._compare(">", other)

    def __ge__(self, other: Number) -> V:
        return self._compare(">=", other)

    def eq(self, other: Number) -> V:
        return self._compare("==", other)

    def ne(self, other: Number) -> V:
        return self._compare("!=", other)

    def isnan(self) -> V:
        return V(self.b, self.b.fcmp_unordered("uno", self.v, self.v))

    # -- conversions -----------------------------------------------------------------------------------------
    def bits(self) -> V:
        """The bit pattern of a float, as an integer of the same width."""
        return V(self.b, self.b.bitcast(self.v, like(self.v.type, self.format.int_type)))

    def as_float(self) -> V:
        """The float with this bit pattern."""
        element = ir.DoubleType() if self.format is F64 else ir.FloatType()
        return V(self.b, self.b.bitcast(self.v, like(self.v.type, element)))

    def to_f64(self) -> V:
        return V(self.b, self.b.fpext(self.v, like(self.v.type, ir.DoubleType())))

    def to_f32(self) -> V:
        return V(self.b, self.b.fptrunc(self.v, like(self.v.type, ir.FloatType())))

    def to_float(self) -> V:
        """A signed integer to the float of the same width."""
        element = ir.DoubleType() if self.format is F64 else ir.FloatType()
        return V(self.b, self.b.sitofp(self.v, like(self.v.type, element)))

    def call(self, name: str, *others: Number) -> V:
        """The LLVM intrinsic ``llvm.<name>`` of this value (and others of its type)."""
        return V(self.b, intrinsic(self.b, name, self.v.type, [self.v, *(self._raw(o) for o in others)]))


def where(condition: V, a: Number, b: Number) -> V:
    """`a` where `condition` holds, else `b` (one of them must be a `V`)."""
    some = a if isinstance(a, V) else b
    assert isinstance(some, V)
    return V(condition.b, condition.b.select(condition.v, some._raw(a), some._raw(b)))


def fma(a: V, b: Number, c: Number) -> V:
    """a*b + c, fused where the machine can: use it where the rounding of the product does not matter."""
    return a.call("fmuladd", b, c)


def exact_fma(a: V, b: Number, c: Number) -> V:
    """a*b + c with one rounding, always."""
    return a.call("fma", b, c)


def rint(x: V) -> V:
    """The nearest integer, the even one of two."""
    if target_of(x.b).rounds:
        return x.call("rint")
    whole = 2.0**x.format.mantissa  # from here on all numbers are integers
    return where(abs(x) < whole, copysign((abs(x) + whole) - whole, x), x)


def sqrt(x: V) -> V:
    return x.call("sqrt")


def copysign(magnitude: V, sign: V) -> V:
    return magnitude.call("copysign", sign)


def clamp(x: V, low: float, high: float) -> V:
    """x limited to [low, high]; NaN stays NaN (each step is one ``minps``/``maxps``)."""
    x = where(x.const(high) < x, high, x)
    return where(x.const(low) > x, low, x)


def poly(x: V, coefficients: Sequence[float]) -> V:
    """sum of c[i] * x**i by Horner's rule."""
    result = x.const(coefficients[-1])
    for c in coefficients[-2::-1]:
        result = fma(result, x, c)
    return result


def two_sum(a: V, b: V) -> tuple[V, V]:
    """a + b as an unevaluated sum of two (Knuth): no condition on the magnitudes."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def fast_two_sum(a: V, b: V) -> tuple[V, V]:
    """a + b as an unevaluated sum of two (Dekker), for |a| >= |b| or a == 0."""
    s = a + b
    return s, b - (s - a)


def two_prod(a: V, b: Number) -> tuple[V, V]:
    """a * b as an unevaluated sum of two."""
    p = a * b
    return p, exact_fma(a, b, -p)


def pow2(n: V) -> V:
    """2**n as a float, for an integer n within the range of normal exponents."""
    f = n.format
    return ((n + f.bias) << f.mantissa).as_float()


def scale(x: V, n: V) -> V:
    """x * 2**n, correctly rounded for subnormal results, for an integer n of at most twice the normal exponents."""
    half = n >> 1
    return (x * pow2(half)) * pow2(n - half)


_SCALEF = {(32, 16): "ps.512", (32, 8): "ps.256", (32, 4): "ps.128", (64, 8): "pd.512", (64, 4): "pd.256"}


def scale_by(x: V, n: V) -> V:
    """`scale` for an integral float n: AVX-512 has an instruction for it."""
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    suffix = _SCALEF.get((x.format.width, min(lanes, 512 // x.format.width)))
    if suffix is None or target_of(x.b).vector_bytes != 64:
        return scale(x, small_int(n))
    widest = 512 // x.format.width
    if lanes > widest:
        halves = [range(0, lanes // 2), range(lanes // 2, lanes)]
        low, high = (scale_by(_lanes(x, which), _lanes(n, which)) for which in halves)
        order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(lanes)))
        return V(x.b, x.b.shuffle_vector(low.v, high.v, order))
    mask = ir.Constant(ir.IntType(max(lanes, 8)), -1)
    args = [x.v, n.v, x.v, mask]
    if suffix.endswith("512"):
        args.append(ir.Constant(ir.IntType(32), 4))  # rounding as usual
    name = f"llvm.x86.avx512.mask.scalef.{suffix}"
    function = x.b.module.globals.get(name)
    if function is None:
        function = ir.Function(x.b.module, ir.FunctionType(x.type, [a.type for a in args]), name)
    return V(x.b, x.b.call(function, args))


def _lanes(x: V, which: Sequence[int]) -> V:
    order = ir.Constant(ir.VectorType(ir.IntType(32), len(which)), list(which))
    return V(x.b, x.b.shuffle_vector(x.v, x.v, order))


def target_of(builder: ir.IRBuilder) -> TargetInfo:
    """The machine that the module is written for."""
    return getattr(builder.module, "fgrad_target", None) or host()


def rarely(condition: V, slow: Callable[[], V], usual: V) -> V:
    """`where(condition, slow(), usual)`; of vectors, with a branch around `slow` for when the condition holds in no lane.

    Scalars stay without branches: LLVM may still make vectors of the loop that they are in."""
    b, some = condition.b, condition.v
    if not isinstance(some.type, ir.VectorType):
        return where(condition, slow(), usual)
    bits = b.bitcast(some, ir.IntType(some.type.count))
    some = b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))
    before = b.block
    with b.if_then(some, likely=False):
        corrected = where(condition, slow(), usual)
        inside = b.block
    result = b.phi(usual.type)
    result.add_incoming(usual.v, before)
    result.add_incoming(corrected.v, inside)
    return V(b, result)


def small_int(n: V) -> V:
    """The integer value of an integral float of magnitude below 2**22 (2**51 for float64).

    Adding 1.5 * 2**mantissa puts the integer into the low bits, so this is one addition and one subtraction on every
    machine, where a conversion to 64-bit integers is slow without AVX-512.
    """
    magic = n.const(1.5 * 2.0**n.format.mantissa)
    return (n + magic).bits() - magic.bits()


def in_f64(function: Callable[..., V]) -> Callable[..., V]:
    """A function of float64 that also serves float32, by computing in float64."""

    def wrapped(*args: V) -> V:
        if args[0].f32:
            return function(*(a.to_f64() for a in args)).to_f32()
        return function(*args)

    wrapped.__doc__, wrapped.__name__ = function.__doc__, function.__name__
    return wrapped
