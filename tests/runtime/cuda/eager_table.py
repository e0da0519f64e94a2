"""One call (or a few) of every public function on arrays: see eager_cases.py. `a` has the arrays, on the CPU or on the device."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fgrad
import fgrad.numpy as fnp
from fgrad import lax, random, special

_rng = np.random.default_rng(7)


def _f(*shape: int) -> np.ndarray:
    return _rng.normal(size=shape).astype("float32")


HOST = {
    "x": _f(6),
    "y": _f(6),
    "p": _rng.uniform(0.2, 0.9, 6).astype("float32"),
    "m": _f(3, 4),
    "n": _f(3, 4),
    "t": _f(2, 3, 4),
    "s": (_f(3, 3) + 3 * np.eye(3)).astype("float32"),
    "v": _f(3),
    "up": np.cumsum(_rng.uniform(0.2, 0.9, 6)).astype("float32"),
    "nans": np.array([1.5, np.nan, -2, 0.25], "float32"),
    "one": np.float32(1.25),
    "i": np.array([4, 0, 2, 2]),
    "j": np.array([1, 3, 5, 2]),
    "b": np.array([True, False, True, True, False, False]),
    "c": np.array([False, False, True, False, True, False]),
    "u": np.array([3, 250, 7], "uint8"),
    "images": _f(2, 2, 4, 4),
    "filters": _f(3, 2, 3, 3),
    "back": _f(2, 3, 3, 3),
    "keys": np.array([0, 42], "uint32"),
}


def _words(text: str) -> list[str]:
    return text.split()


def arrays(device: str) -> SimpleNamespace:
    return SimpleNamespace(**{k: fgrad.device_put(fnp.asarray(v), device) for k, v in HOST.items()})


_SIGNED = _words("""abs absolute around arctan asinh arcsinh atan cbrt ceil conj conjugate cos cosh deg2rad degrees exp exp2 expm1 fabs fix
floor isfinite isinf isnan isneginf isposinf isreal iscomplex logical_not nan_to_num negative positive rad2deg radians real imag
reciprocal rint round sign signbit sin sinc sinh square tan tanh trunc angle atleast_1d atleast_2d atleast_3d array asarray astype
copy empty_like zeros_like ones_like flip flipud ravel squeeze transpose diff ediff1d cumsum cumprod cumulative_sum cumulative_prod
nancumsum nancumprod all any amax amin argmax argmin average count_nonzero max mean min prod ptp std sum var nanargmax nanargmin nanmax
nanmean nanmin nanprod nanstd nansum nanvar diag diagflat gradient polyder polyint trapezoid unwrap vander from_dlpack
unstack permute_dims modf iscomplexobj isrealobj ndim shape size corrcoef cov""")
_UNIT = _words("acos arccos asin arcsin atanh arctanh log log10 log1p log2 sqrt")
_BIG = _words("acosh arccosh")
_PAIRS = _words("""add arctan2 atan2 copysign equal fmax fmin greater greater_equal heaviside hypot less less_equal logaddexp logaddexp2
maximum minimum multiply nextafter not_equal subtract array_equal array_equiv isclose allclose dot inner outer vdot vecdot kron append
convolve correlate polyadd polysub polymul logical_and logical_or logical_xor""")
_DIVISIONS = _words("divide true_divide divmod floor_divide fmod mod remainder")
_INTEGERS = _words(
    """bitwise_and bitwise_or bitwise_xor gcd lcm left_shift right_shift bitwise_left_shift bitwise_right_shift"""
)
_MATRICES = _words("""fliplr matrix_transpose rot90 tril triu""")


def _calling(name: str, *operands: str):
    f = getattr(fnp, name)
    return lambda a: f(*[getattr(a, o) for o in operands])


NUMPY = {
    **{name: _calling(name, "x") for name in _SIGNED if name != "astype"},
    **{name: _calling(name, "p") for name in _UNIT},
    **{name: (lambda f: lambda a: f(a.p + 1))(getattr(fnp, name)) for name in _BIG if hasattr(fnp, name)},
    **{name: _calling(name, "x", "y") for name in _PAIRS},
    **{name: _calling(name, "x", "p") for name in _DIVISIONS},
    **{name: _calling(name, "i", "j") for name in _INTEGERS},
    **{name: _calling(name, "m") for name in _MATRICES},
    **{f"{name} of a matrix": _calling(name, "m") for name in ("diag", "cov", "corrcoef", "transpose", "gradient", "unstack")},
    **{f"{name} along an axis": (lambda f: lambda a: f(a.m, axis=1))(getattr(fnp, name)) for name in (
        "sum", "mean", "var", "max", "argmax", "cumsum", "cumprod", "nanmean", "nanmax", "nanargmin", "all", "any", "flip", "diff", "nanvar",
        "average", "trapezoid", "ptp", "count_nonzero")},
    "astype": lambda a: [fnp.astype(a.x, d) for d in ("float64", "int32", "bool", "bfloat16", "uint8")],
    "average weights": lambda a: fnp.average(a.m, axis=0, weights=a.v),
    "bitwise": lambda a: [fnp.bitwise_and(a.b, a.c), a.b | a.c, a.b ^ a.c, ~a.b, ~a.i],
    "bitwise_count": lambda a: fnp.bitwise_count(a.u),
    "bitwise_invert": lambda a: fnp.bitwise_invert(a.i),
    "bitwise_not": lambda a: fnp.bitwise_not(a.b),
    "invert": lambda a: fnp.invert(a.u),
    "apply_along_axis": lambda a: fnp.apply_along_axis(lambda r: r.sum() * r, 1, a.m),
    "apply_over_axes": lambda a: fnp.apply_over_axes(fnp.sum, a.t, [0, 2]),
    "array of rows": lambda a: fnp.array([a.x, a.y]),
    "array of numbers": lambda a: fnp.array([a.x[0], 2.0, a.y[1]]),
    "array dtype": lambda a: [fnp.array(a.x, "float64"), fnp.array(a.x, ndmin=3)],
    "array_split": lambda a: fnp.array_split(a.x, 4),
    "split": lambda a: fnp.split(a.x, 3),
    "hsplit": lambda a: fnp.hsplit(a.m, 2),
    "vsplit": lambda a: fnp.vsplit(a.m, 3),
    "dsplit": lambda a: fnp.dsplit(a.t, 2),
    "block": lambda a: fnp.block([[a.m, a.n], [a.n, a.m]]),
    "broadcast_arrays": lambda a: fnp.broadcast_arrays(a.v[:, None], a.m),
    "broadcast_to": lambda a: fnp.broadcast_to(a.v, (2, 3)),
    "choose": lambda a: fnp.choose(fnp.asarray(a.i) % 2, [a.j, a.i]),
    "clip": lambda a: [fnp.clip(a.x, -0.5, 0.5), fnp.clip(a.x, a.y - 1, a.y)],
    "column_stack": lambda a: fnp.column_stack([a.x, a.y]),
    "concat": lambda a: fnp.concat([a.x, a.y]),
    "concatenate": lambda a: [fnp.concatenate([a.m, a.n], axis=1), fnp.concatenate([a.x, a.i])],
    "stack": lambda a: fnp.stack([a.x, a.y], axis=1),
    "hstack": lambda a: fnp.hstack([a.m, a.n]),
    "vstack": lambda a: fnp.vstack([a.x, a.y]),
    "dstack": lambda a: fnp.dstack([a.m, a.n]),
    "stack with numbers": lambda a: fnp.stack([a.one, fnp.float32(2)]),
    "cross": lambda a: fnp.cross(a.v, a.v[::-1]),
    "diag_indices_from": lambda a: fnp.diag_indices_from(a.s),
    "tril_indices_from": lambda a: fnp.tril_indices_from(a.s),
    "triu_indices_from": lambda a: fnp.triu_indices_from(a.s, 1),
    "diagonal": lambda a: fnp.diagonal(a.t, 1, 1, 2),
    "fill_diagonal": lambda a: fnp.fill_diagonal(a.s, 2.0),
    "diff more": lambda a: fnp.diff(a.x, 2, prepend=0.0, append=a.one),
    "ediff1d ends": lambda a: fnp.ediff1d(a.x, to_end=1.0, to_begin=a.v),
    "digitize": lambda a: fnp.digitize(a.x, a.up),
    "searchsorted": lambda a: [fnp.searchsorted(a.up, a.x), fnp.searchsorted(a.up, a.x, side="right")],
    "einsum": lambda a: [fnp.einsum("ij,kj->ik", a.m, a.n), fnp.einsum("ii->i", a.s), fnp.einsum("i,j", a.x, a.y)],
    "expand_dims": lambda a: fnp.expand_dims(a.x, 1),
    "float_power": lambda a: fnp.float_power(a.p, 2),
    "full": lambda a: fnp.full((2, 6), a.x),
    "full_like": lambda a: [fnp.full_like(a.x, 2), fnp.full_like(a.x, a.y)],
    "gradient spacing": lambda a: [fnp.gradient(a.x, 0.5), fnp.gradient(a.x, a.up), fnp.gradient(a.m, axis=1, edge_order=2)],
    "histogram": lambda a: fnp.histogram(a.x, bins=4, range=(-2, 2))[0],
    "histogram_bin_edges": lambda a: fnp.histogram_bin_edges(a.x, 4),
    "insert": lambda a: fnp.insert(a.x, 2, 5.0),
    "delete": lambda a: fnp.delete(a.x, 2),
    "interp": lambda a: [fnp.interp(a.x, a.up, a.y), fnp.interp(a.x, a.up, a.y, left=-9.0, right=a.one)],
    "isin": lambda a: fnp.isin(a.i, a.j),
    "ix_": lambda a: fnp.ix_(a.i, a.j),
    "ldexp": lambda a: fnp.ldexp(a.x, 3),
    "linspace": lambda a: fnp.linspace(a.x, a.y, 3),
    "geomspace": lambda a: fnp.geomspace(a.p, a.p + 2, 3),
    "logspace": lambda a: fnp.logspace(a.p, a.p + 1, 3),
    "matmul": lambda a: [a.m @ a.n.T, a.t @ a.n.T, a.s @ a.v, a.v @ a.s, a.v @ a.v],
    "matvec": lambda a: fnp.matvec(a.s, a.v),
    "vecmat": lambda a: fnp.vecmat(a.v, a.s),
    "meshgrid": lambda a: fnp.meshgrid(a.v, a.x),
    "moveaxis": lambda a: fnp.moveaxis(a.t, 0, 2),
    "nan_to_num of nan": lambda a: fnp.nan_to_num(a.nans, nan=2.0),
    "nan": lambda a: [fnp.nansum(a.nans), fnp.nanmean(a.nans), fnp.nanstd(a.nans), fnp.nanmax(a.nans), fnp.nancumsum(a.nans)],
    "nanargmax of nan": lambda a: [fnp.nanargmax(a.nans), fnp.nanargmin(a.nans)],
    "pad": lambda a: [fnp.pad(a.m, ((1, 0), (2, 1)), constant_values=3.0), fnp.pad(a.x, 2)],
    "pad modes": lambda a: [fnp.pad(a.m, 2, mode=m) for m in ("edge", "wrap", "reflect", "symmetric", "maximum")],
    "piecewise": lambda a: fnp.piecewise(a.x, [a.x < 0, a.x > 1], [lambda x: -x, 3.0, lambda x: x * 2]),
    "polyval": lambda a: fnp.polyval(a.v, a.x),
    "pow": lambda a: fnp.pow(a.p, a.x),
    "power": lambda a: [a.x**2, a.p**0.5, 2.0**a.x, a.i**2, a.x**-1, a.x**3],
    "put_along_axis": lambda a: fnp.put_along_axis(a.m, a.i[:3, None] % 4, 9.0, 1),
    "ravel_multi_index": lambda a: fnp.ravel_multi_index((a.i, a.j), (5, 6)),
    "unravel_index": lambda a: fnp.unravel_index(a.j, (2, 3)),
    "repeat": lambda a: [fnp.repeat(a.m, 2, axis=1), fnp.repeat(a.x, 3), fnp.repeat(a.i, a.j, total_repeat_length=12)],
    "reshape": lambda a: [fnp.reshape(a.m, (2, -1)), a.m.reshape(4, 3)],
    "resize": lambda a: fnp.resize(a.x, (3, 5)),
    "roll": lambda a: [fnp.roll(a.m, 1, axis=1), fnp.roll(a.x, -2), fnp.roll(a.m, (1, 2), axis=(0, 1))],
    "rollaxis": lambda a: fnp.rollaxis(a.t, 2),
    "round": lambda a: fnp.round(a.x * 10, 1),
    "select": lambda a: fnp.select([a.b, a.c], [a.x, a.y], 7.0),
    "squeeze": lambda a: fnp.squeeze(a.x[None, :, None], 0),
    "swapaxes": lambda a: fnp.swapaxes(a.t, 0, 1),
    "take": lambda a: [fnp.take(a.x, a.i), fnp.take(a.m, a.i - 1, axis=1, mode="wrap"), fnp.take(a.m, a.j, axis=0, mode="clip"), fnp.take(a.x, [0, -1])],
    "take_along_axis": lambda a: fnp.take_along_axis(a.m, a.i[:3, None] % 4, 1),
    "tensordot": lambda a: fnp.tensordot(a.m, a.n, axes=([1], [1])),
    "tile": lambda a: fnp.tile(a.m, (2, 1)),
    "trace": lambda a: fnp.trace(a.s, 1),
    "trapezoid x": lambda a: fnp.trapezoid(a.x, a.up),
    "where": lambda a: [fnp.where(a.b, a.x, a.y), fnp.where(a.x > 0, a.x, 0), fnp.where(a.b, 1.0, a.one)],
    "cov of two": lambda a: fnp.cov(a.x, a.y),
    "bincount": lambda a: [fnp.bincount(a.i, length=6), fnp.bincount(a.i, weights=a.x[:4], length=5)],
    "vander": lambda a: fnp.vander(a.x, 3),
}  # fmt: skip

MORE = {
    # operators and methods
    "operators": lambda a: [a.x + 1, 1 - a.x, a.x * a.y, a.x / 2, 3 / a.p, a.i // 3, a.i % 3, -a.x, abs(a.x), +a.x, a.i << 1, a.i >> 1],
    "comparisons": lambda a: [a.x < 0, a.x >= a.y, a.x == a.x, a.x != a.y, a.x <= 0.5],
    "methods": lambda a: [a.x.sum(), a.m.mean(0), a.m.std(1), a.m.T, a.m.mT, a.x.real, a.x.clip(0, 1), a.x.round(1), a.x.astype("int32"), a.x.dot(a.y)],
    "more methods": lambda a: [a.x.view("int32"), a.x.copy(), a.m.ravel(), a.m.flatten(), a.x.argmax(), a.x.take(a.i), a.x.repeat(2), a.x.cumsum()],
    "rows": lambda a: list(a.m),
    "numpy numbers": lambda a: [a.x + np.float32(2), np.float32(2) * a.x, a.x + np.ones((), "float32"), np.ones(1, "float32") + a.x],
    "mixed dtypes": lambda a: [a.x + a.i[0], a.i * 1.5, a.u + a.i[:3], a.b + a.x, a.x.astype("float64") + a.x],
    "matmul of halves": lambda a: a.m.astype("bfloat16") @ a.n.astype("bfloat16").T,
    # indexing
    "slices": lambda a: [a.x[1:4], a.x[::2], a.x[::-1], a.x[-1], a.m[1], a.m[:, 1], a.m[..., None], a.t[0, 1:, ::-2], a.x[3:1]],
    "index arrays": lambda a: [a.x[a.i], a.m[a.i[1:3], a.j[:2] % 4], a.t[:, a.i[1:], 1:], a.x[[0, 2, -1]], a.m[[[0], [2]], [1, 3]], a.m[a.i[0] - 4]],
    "index a device number": lambda a: [a.x[a.i[1]], a.m[a.i[1], a.i[2]], a.m[a.i[1]]],
    "at": lambda a: [a.x.at[1].set(5.0), a.x.at[a.i].add(1.0), a.m.at[1:, 2].mul(3.0), a.x.at[a.i].set(a.y[:4]), a.x.at[::2].min(0.0), a.x.at[a.j].max(a.p[:4])],
    "at more": lambda a: [getattr(a.x.at[a.j], n)(2.0) for n in ("subtract", "divide", "power") if hasattr(a.x.at[a.j], n)],
    "at get": lambda a: a.x.at[a.i].get(),
    "mask at": lambda a: [a.x.at[a.b].set(0.0), a.x.at[a.b].add(2.0)],
    "searchsorted sorter": lambda a: fnp.searchsorted(a.up[::-1], a.x, sorter=lax.iota((6,), like=a.x)[::-1]),
    "linalg": lambda a: [fnp.linalg.norm(a.x), fnp.linalg.norm(a.m, axis=1), fnp.linalg.vector_norm(a.x), fnp.linalg.matrix_norm(a.m)],
    "linalg products": lambda a: [fnp.linalg.multi_dot([a.m, a.n.T, a.s]), fnp.linalg.matrix_power(a.s, 3), fnp.linalg.outer(a.x, a.y), fnp.linalg.trace(a.s)],
    "fft.fftshift": lambda a: [fnp.fft.fftshift(a.x), fnp.fft.ifftshift(a.m)],
    # fgrad.lax
    "lax.avg_pool": lambda a: [lax.avg_pool(a.images, 2), lax.avg_pool(a.images, 3, strides=2, padding=1, count_include_pad=False)],
    "lax.max_pool": lambda a: lax.max_pool(a.images, 2, padding=1),
    "lax.max_pool_with_offset": lambda a: lax.max_pool_with_offset(a.images, 2, strides=1),
    "lax.sum_pool": lambda a: lax.sum_pool(a.images, 2),
    "lax.bitcast": lambda a: lax.bitcast(a.x, "int32"),
    "lax.conv": lambda a: [lax.conv(a.images, a.filters, padding=1), lax.conv(a.images, a.filters, strides=2, padding="same")],
    "lax.conv_transpose": lambda a: lax.conv_transpose(a.images, a.back, strides=2),
    "lax.dot_general": lambda a: lax.dot_general(a.t, a.t, (((2,), (2,)), ((0,), (0,)))),
    "lax.dynamic_slice": lambda a: [lax.dynamic_slice(a.m, (1, 2), (2, 2)), lax.dynamic_slice(a.m, (a.i[1], a.i[2]), (2, 2))],
    "lax.dynamic_update_slice": lambda a: [lax.dynamic_update_slice(a.x, a.v, (2,)), lax.dynamic_update_slice(a.x, a.v, (a.i[2],))],
    "lax.gather": lambda a: lax.gather(a.m, a.i[1:] % 3, 0),
    "lax.scatter": lambda a: [lax.scatter(a.x, a.y[:4], a.j, 0, m) for m in ("set", "add", "mul", "minimum", "maximum")],
    "lax.iota": lambda a: lax.iota((3, 2), 1, like=a.x),
    "lax.reciprocal": lambda a: lax.reciprocal(a.p),
    "lax.rsqrt": lambda a: lax.rsqrt(a.p),
    "lax.stop_gradient": lambda a: lax.stop_gradient(a.x),
    # fgrad.special
    **{f"special.{n}": (lambda f: lambda a: f(a.p))(getattr(special, n)) for n in
       _words("digamma entr erf erfc erfinv expit gammaln lgamma log_sigmoid logit ndtr relu sigmoid softplus")},
    "special.logsumexp": lambda a: [special.logsumexp(a.m), special.logsumexp(a.m, axis=1, b=a.n**2)],
    "special.softmax": lambda a: special.softmax(a.m),
    "special.log_softmax": lambda a: special.log_softmax(a.m, axis=0),
    "special.one_hot": lambda a: special.one_hot(a.i, 5),
    "special.xlogy": lambda a: special.xlogy(a.x, a.p),
    # fgrad.random
    "random.bernoulli": lambda a: [random.bernoulli(a.keys, 0.3, (5,)), random.bernoulli(a.keys, a.p)],
    "random.bits": lambda a: [random.bits(a.keys, (5,), d) for d in ("uint8", "uint16", "uint32", "uint64")],
    "random.categorical": lambda a: [random.categorical(a.keys, a.m), random.categorical(a.keys, a.v, shape=(4,))],
    **{f"random.{n}": (lambda f: lambda a: f(a.keys, (5,)))(getattr(random, n)) for n in
       _words("cauchy exponential gumbel laplace logistic normal rademacher uniform")},
    "random.uniform between": lambda a: [random.uniform(a.keys, (6,), minval=a.x - 1, maxval=a.x), random.uniform(a.keys, (4,), "bfloat16", -1, 3)],
    "random.normal float64": lambda a: random.normal(a.keys, (3,), "float64"),
    "random.truncated_normal": lambda a: [random.truncated_normal(a.keys, -1.0, 2.0, (5,)), random.truncated_normal(a.keys, a.x - 1, a.x)],
    "random.randint": lambda a: [random.randint(a.keys, (5,), 0, 10), random.randint(a.keys, (4,), a.i, a.i + 5)],
    "random.fold_in": lambda a: [random.fold_in(a.keys, 3), random.fold_in(a.keys, a.i[0])],
    "random.split": lambda a: [random.split(a.keys), random.split(a.keys, 3)],
    "random.choice": lambda a: [random.choice(a.keys, 5, (4,)), random.choice(a.keys, a.x, (3,)), random.choice(a.keys, a.v, (3,), p=abs(a.v) / abs(a.v).sum())],
}  # fmt: skip

# What leaves to NumPy what it needs, so that it is an error on the device, unless `host_ops` allows the copies.
HOST_ONLY = {
    "sort": lambda a: fnp.sort(a.x),
    "argsort": lambda a: fnp.argsort(a.x),
    "lexsort": lambda a: fnp.lexsort((a.x, a.y)),
    "partition": lambda a: fnp.partition(a.x, 2),
    "argpartition": lambda a: fnp.argpartition(a.x, 2),
    "median": lambda a: fnp.median(a.x),
    "nanmedian": lambda a: fnp.nanmedian(a.nans),
    "quantile": lambda a: fnp.quantile(a.x, 0.3),
    "percentile": lambda a: fnp.percentile(a.m, 30.0, axis=1),
    "nanquantile": lambda a: fnp.nanquantile(a.nans, 0.3),
    "nanpercentile": lambda a: fnp.nanpercentile(a.nans, 30.0),
    "nonzero sized": lambda a: [fnp.nonzero(a.b, size=4), fnp.flatnonzero(a.b, size=2), fnp.argwhere(a.b, size=3)],
    "unique sized": lambda a: fnp.unique(a.i, size=3),
    "random.permutation": lambda a: [random.permutation(a.keys, 5), random.permutation(a.keys, a.x)],
    "random.choice without replacement": lambda a: random.choice(a.keys, a.x, (3,), replace=False),
    "linalg.inv": lambda a: fnp.linalg.inv(a.s),
    "linalg.solve": lambda a: fnp.linalg.solve(a.s, a.v),
    "linalg.det": lambda a: fnp.linalg.det(a.s),
    "linalg.svd": lambda a: fnp.linalg.svdvals(a.s),
    "linalg.qr": lambda a: fnp.linalg.qr(a.s),
    "linalg.cholesky": lambda a: fnp.linalg.cholesky(a.s @ a.s.T),
    "linalg.eigh": lambda a: fnp.linalg.eigvalsh(a.s @ a.s.T),
    "linalg.slogdet": lambda a: fnp.linalg.slogdet(a.s),
    "linalg.pinv": lambda a: fnp.linalg.pinv(a.s),
    "linalg.lstsq": lambda a: fnp.linalg.lstsq(a.s, a.v)[0],
    "linalg.cond": lambda a: fnp.linalg.cond(a.s),
    "linalg.matrix_rank": lambda a: fnp.linalg.matrix_rank(a.s),
    "fft.fft": lambda a: fnp.fft.fft(a.x),
    "fft.ifft": lambda a: fnp.fft.ifft(a.x),
    "fft.rfft": lambda a: fnp.fft.rfft(a.x),
    "fft.irfft": lambda a: fnp.fft.irfft(a.x),
    "fft.fft2": lambda a: fnp.fft.fft2(a.m),
    "complex": lambda a: fnp.sin(a.x + 1j),
    "complex abs": lambda a: fnp.abs(a.x * 1j),
}  # fmt: skip

# What needs to know values to say what shape its result has.
NEEDS_VALUES = {
    "nonzero": lambda a: fnp.nonzero(a.b),
    "flatnonzero": lambda a: fnp.flatnonzero(a.b),
    "argwhere": lambda a: fnp.argwhere(a.b),
    "mask": lambda a: a.x[a.b],
    "extract": lambda a: fnp.extract(a.b, a.x),
    "compress": lambda a: fnp.compress(a.b, a.x),
    "repeat counts": lambda a: fnp.repeat(a.i, a.j),
    "bincount of unknown length": lambda a: fnp.bincount(a.i),
    "trim_zeros": lambda a: fnp.trim_zeros(a.x),
    "ix_ of bools": lambda a: fnp.ix_(a.b, a.c),
    "unique": lambda a: fnp.unique(a.i),
    "unique_values": lambda a: fnp.unique_values(a.i),
    "union1d": lambda a: fnp.union1d(a.i, a.j),
    "intersect1d": lambda a: fnp.intersect1d(a.i, a.j),
    "setdiff1d": lambda a: fnp.setdiff1d(a.i, a.j),
    "setxor1d": lambda a: fnp.setxor1d(a.i, a.j),
    "delete many": lambda a: fnp.delete(a.x, a.i),
}  # fmt: skip

# Of nothing but numbers: on the CPU, or where `default_device` says.
OF_NUMBERS = {
    "arange": lambda: [fnp.arange(5), fnp.arange(1, 3, 0.5)],
    "bartlett": lambda: fnp.bartlett(4),
    "blackman": lambda: fnp.blackman(4),
    "hamming": lambda: fnp.hamming(4),
    "hanning": lambda: fnp.hanning(4),
    "kaiser": lambda: fnp.kaiser(4, 3.0),
    "diag_indices": lambda: fnp.diag_indices(3),
    "tril_indices": lambda: fnp.tril_indices(3),
    "triu_indices": lambda: fnp.triu_indices(3),
    "empty": lambda: fnp.empty((2, 3)),
    "eye": lambda: fnp.eye(3, 4, 1),
    "identity": lambda: fnp.identity(2),
    "tri": lambda: fnp.tri(3),
    "fromfunction": lambda: fnp.fromfunction(lambda i, j: i + j, (2, 3)),
    "full": lambda: [fnp.full((2, 3), 1.5), fnp.full((), 2)],
    "ones": lambda: [fnp.ones(3), fnp.ones(()), fnp.ones((2, 0))],
    "zeros": lambda: [fnp.zeros((2, 3), "int8"), fnp.zeros(())],
    "indices": lambda: fnp.indices((2, 3)),
    "linspace": lambda: fnp.linspace(0, 1, 5),
    "logspace": lambda: fnp.logspace(0, 1, 3),
    "geomspace": lambda: fnp.geomspace(1, 8, 4),
    "fft.fftfreq": lambda: fnp.fft.fftfreq(5),
    "fft.rfftfreq": lambda: fnp.fft.rfftfreq(6),
    "lax.iota": lambda: lax.iota((2, 3), 1),
    "random.key": lambda: random.key(7),
    "random.PRNGKey": lambda: random.PRNGKey(7),
    "computing on": lambda: fnp.zeros(4).at[fnp.arange(2)].set(1.0) + fnp.eye(4)[1] * random.uniform(random.key(0), (4,)),
}  # fmt: skip

# Functions of dtypes, shapes and bytes.
NOT_OF_ARRAYS = set(
    _words(
        "broadcast_shapes can_cast dtype finfo frombuffer iinfo isdtype isscalar issubdtype promote_types result_type"
    )
)
