"""`Array`: what every fgrad function takes and returns, and its concrete form on a NumPy buffer.

`Array` is the common base of `ConcreteArray` (a value) and `Tracer` (a value to be, see `trace.py`), so `isinstance(x,
fgrad.Array)` holds inside and outside of traces. Operators and methods (`x + y`, `x.sum()`, `x.at[i].set(v)`) are installed by
`fgrad.numpy.methods`, which sits above the operations they call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fgrad import dtypes
from fgrad.errors import FgradError, FgradTypeError, FgradValueError, message
from fgrad.ir import Type
from fgrad.memory import Block, ownership, view


class Array:
    """An n-dimensional array of one dtype. Immutable: operations return new arrays.

    >>> import fgrad.numpy as fnp
    >>> x = fnp.array([1.0, 2.0])
    >>> x.at[0].set(5.0)
    Array([5., 2.], dtype=float32)
    """

    __slots__ = ()
    type: Type

    # `np.ndarray + Array` is ours: NumPy defers to a higher priority that defines `__radd__`.
    __array_priority__ = 1000

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> np.dtype:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.type.shape)

    @property
    def size(self) -> int:
        return self.type.size

    @property
    def nbytes(self) -> int:
        return self.type.nbytes

    @property
    def itemsize(self) -> int:
        return self.type.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise FgradTypeError(
                message("len", "a 0-dimensional array has no length", "use .size, or .item() for its value")
            )
        return self.shape[0]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise FgradTypeError(
            message(
                "x[index] = value",
                "fgrad arrays are immutable",
                "write `x = x.at[index].set(value)` (also .add, .mul, .min, .max)",
            )
        )

    if TYPE_CHECKING:  # what `fgrad.numpy.methods` installs

        def __getattr__(self, name: str) -> Any: ...

        def __getitem__(self, index: Any) -> Array: ...
        def __iter__(self) -> Iterator[Array]: ...
        def __add__(self, other: Any) -> Array: ...
        def __sub__(self, other: Any) -> Array: ...
        def __mul__(self, other: Any) -> Array: ...
        def __truediv__(self, other: Any) -> Array: ...
        def __floordiv__(self, other: Any) -> Array: ...
        def __mod__(self, other: Any) -> Array: ...
        def __pow__(self, other: Any) -> Array: ...
        def __matmul__(self, other: Any) -> Array: ...
        def __and__(self, other: Any) -> Array: ...
        def __or__(self, other: Any) -> Array: ...
        def __xor__(self, other: Any) -> Array: ...
        def __lshift__(self, other: Any) -> Array: ...
        def __rshift__(self, other: Any) -> Array: ...
        def __radd__(self, other: Any) -> Array: ...
        def __rsub__(self, other: Any) -> Array: ...
        def __rmul__(self, other: Any) -> Array: ...
        def __rtruediv__(self, other: Any) -> Array: ...
        def __rpow__(self, other: Any) -> Array: ...
        def __neg__(self) -> Array: ...
        def __abs__(self) -> Array: ...
        def __invert__(self) -> Array: ...
        def __lt__(self, other: Any) -> Array: ...
        def __le__(self, other: Any) -> Array: ...
        def __gt__(self, other: Any) -> Array: ...
        def __ge__(self, other: Any) -> Array: ...
        def __eq__(self, other: Any) -> Array: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Array: ...  # type: ignore[override]

    def __hash__(self) -> int:
        raise FgradTypeError(
            message("hash", "arrays are not hashable", "use id(x), or np.asarray(x).tobytes() as a key")
        )


class _Elsewhere:
    """An attribute that arrays do not have, and what to write instead. (Not `__getattr__`: NumPy asks arrays for protocols
    that they lack at each conversion, which would become five times slower.)"""

    def __init__(self, fix: str):
        self.fix = fix

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, x: Any, owner: type) -> Any:
        text = f"arrays have no attribute '{self.name}'"
        raise AttributeError(message(f"Array.{self.name}", text, self.fix), name=self.name, obj=x)


# What users of PyTorch type, and what it is called here.
_FROM_FUNCTIONS = "gradients come from functions: fgrad.grad(loss)(params)"
_NO_FLAG = "grad differentiates its arguments (argnums says which); arrays carry no flag"
_DEVICES = "fgrad.device_put(x, 'cuda') and fgrad.device_get(x)"
_IMMUTABLE = "arrays are immutable: use the operation that returns a new one, or x = x.at[index].set(value)"
_ELSEWHERE = {
    "backward": _FROM_FUNCTIONS,
    "grad": _FROM_FUNCTIONS,
    "requires_grad": _NO_FLAG,
    "requires_grad_": _NO_FLAG,
    "detach": "fgrad.stop_gradient(x)",
    "numpy": "np.asarray(x), or np.asarray(fgrad.device_get(x)) where x is on a GPU",
    "unsqueeze": "fgrad.numpy.expand_dims(x, axis), or x[:, None]",
    "permute": "x.transpose(axes)",
    "expand": "fgrad.numpy.broadcast_to(x, shape)",
    "float": "x.astype('float32')",
    "long": "x.astype('int64')",
    "to": f"x.astype(dtype), or {_DEVICES}",
    "cpu": "fgrad.device_get(x)",
    "cuda": "fgrad.device_put(x, 'cuda')",
    **dict.fromkeys(("add_", "sub_", "mul_", "div_", "zero_", "fill_", "copy_", "clamp_"), _IMMUTABLE),
}
for _name, _fix in _ELSEWHERE.items():
    _attribute = _Elsewhere(_fix)
    _attribute.__set_name__(Array, _name)
    setattr(Array, _name, _attribute)


_types: dict[tuple[tuple[int, ...], np.dtype], Type] = {}
_MOST_TYPES = 10_000


def type_of(shape: tuple[int, ...], dtype: np.dtype) -> Type:
    """The one `Type` of concrete arrays of this shape and dtype, so that comparing types is mostly comparing identities."""
    found = _types.get((shape, dtype))
    if found is None:
        if len(_types) >= _MOST_TYPES:
            _types.clear()
        found = _types[shape, dtype] = Type(shape, dtype)
    return found


class ConcreteArray(Array):
    """An array with a value: a C-contiguous or strided NumPy buffer that nobody writes to any more. `wrap` makes one.

    There is no `__init__`, which would double the time that a call with many results takes. `_memory` keeps the elements
    alive: the NumPy array, or the `Block` of a compiled program's outputs as long as nobody has looked at this one, so that
    donation may overwrite it. `_ptr` is the elements' address once they are known to be contiguous and aligned. Both
    are None after donation.
    """

    __slots__ = ("__weakref__", "_memory", "_ptr", "type")
    _memory: np.ndarray | None
    _ptr: int | None

    @property
    def data(self) -> np.ndarray:
        """The NumPy buffer, for fgrad's own use."""
        memory = self._memory
        if type(memory) is Block:
            memory = self._look()
        if memory is None:
            raise deleted()
        return memory

    def _look(self) -> np.ndarray | None:
        """The one NumPy array over an output's elements: every view refers to it, and so tells that it is there."""
        with ownership:
            block, pointer = self._memory, self._ptr
            if type(block) is Block and pointer is not None:
                made = view(block, pointer, self.type.shape, self.type.dtype)
                if type(self._memory) is Block:
                    self._memory = made
            return self._memory

    @property
    def is_deleted(self) -> bool:
        return self._memory is None

    @property
    def device(self) -> str:
        return "cpu"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        data = self.data
        if dtype is not None and np.dtype(dtype) != data.dtype:
            if copy is False:
                raise ValueError(f"np.asarray(copy=False): converting {data.dtype} to {dtype} needs a copy")
            return data.astype(dtype)
        if copy:
            return data.copy()
        view = data.view()
        view.flags.writeable = False
        return view

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self.dtype == dtypes.bfloat16:
            raise BufferError(
                "NumPy cannot export bfloat16 through DLPack; export x.view('uint16') or x.astype('float32')"
            )
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def item(self, *index: int) -> Any:
        """The only element (or the one at `index`) as a Python scalar."""
        if not index and self.size != 1:
            raise _not_one_element("item", self, "use x.tolist(), or x.item(i)")
        return self.data.item(*index)

    def tolist(self) -> Any:
        return self.data.tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise _not_one_element("bool", self, "use x.any() or x.all()")
        return bool(self.data)

    def __float__(self) -> float:
        return float(self._single("float"))

    def __int__(self) -> int:
        return int(self._single("int"))

    def __complex__(self) -> complex:
        return complex(self._single("complex"))

    def _single(self, call: str) -> np.ndarray:
        if self.size != 1:
            raise _not_one_element(
                call, self, "reduce it first (x.sum()), pick one element (x[0]), or use x.tolist()"
            )
        return self.data.reshape(())

    def __index__(self) -> int:
        return self.data.__index__()

    def __format__(self, spec: str) -> str:
        return format(self.data[()] if self.ndim == 0 else self.data, spec)

    def __str__(self) -> str:
        return str(self.data)

    def __repr__(self) -> str:
        prefix = "Array("
        body = np.array2string(self.data, separator=", ", prefix=prefix)
        return f"{prefix}{body}, dtype={self.dtype})"

    def __copy__(self) -> ConcreteArray:
        return self

    def __deepcopy__(self, memo: Any) -> ConcreteArray:
        return wrap(self.data.copy())

    def __reduce__(self) -> Any:
        return (wrap, (self.data,))

    def block_until_ready(self) -> ConcreteArray:
        """Return at once: CPU computation is synchronous. For code written for asynchronous devices."""
        return self


def deleted() -> FgradError:
    """The error of whoever uses an array after its donation."""
    text = "this array was donated to a jitted function and no longer has a value"
    return FgradValueError(
        message("Array", text, "use the array that the function returned, or drop `donate`")
    )


def wrap(data: np.ndarray) -> ConcreteArray:
    """The array with this value. Nothing is checked or copied; nobody may write to `data` any more."""
    x = ConcreteArray()
    x._memory = data
    x._ptr = None
    x.type = type_of(data.shape, data.dtype)
    return x


def one_element(call: str, x: Array, fix: str) -> None:
    """Raise unless `x` has one element."""
    if x.size != 1:
        raise _not_one_element(call, x, fix)


def _not_one_element(call: str, x: Array, fix: str) -> FgradError:
    cls = FgradValueError if call in ("item", "bool") else FgradTypeError
    return cls(message(call, f"{x.type} has {x.size} elements, one is needed", fix))


_SCALARS = frozenset({int, float, bool, complex})


def is_scalar(x: Any) -> bool:
    """A bare Python scalar: weak in promotion. (NumPy's scalars are not: they carry a dtype.)"""
    return type(x) in _SCALARS


def from_numpy(data: Any, call: str = "asarray") -> ConcreteArray:
    """Wrap a NumPy array without copying it. The caller promises not to write to it any more."""
    data = np.asarray(data)
    if not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    if data.dtype not in dtypes.ALL:
        raise FgradTypeError(
            message(
                call,
                f"dtype {data.dtype} is not supported",
                "use bool, (u)int8-64, float16, bfloat16, float32, float64, complex64 or complex128",
            )
        )
    return wrap(data)


def concrete(x: Any, dtype: np.dtype | None = None, call: str = "asarray") -> ConcreteArray:
    """A concrete array of a Python scalar, (nested) list or anything with `__array__`.

    Python floats become float32 and Python ints int64 unless `dtype` says otherwise; NumPy arrays keep their dtype.
    """
    if isinstance(x, ConcreteArray) and (dtype is None or x.dtype == dtype):
        return x
    if is_scalar(x):
        wanted = dtype or dtypes.of_scalar(x)
        try:
            return wrap(np.asarray(x, dtype=wanted))
        except OverflowError:
            raise FgradValueError(message(call, f"the Python integer {x} does not fit {wanted}")) from None
    if isinstance(x, (list, tuple)):
        data = np.asarray(x)
        if dtype is None and data.dtype == np.float64 and not _has_numpy_leaf(x):
            dtype = dtypes.default_float
        elif dtype is None and data.dtype == np.complex128 and not _has_numpy_leaf(x):
            dtype = dtypes.complex64
    else:
        if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
            fix = "fill it (x.filled(value)), or pass x.data and x.mask and use fgrad.numpy.where"
            raise FgradTypeError(message(call, "a masked array would lose its mask", fix))
        data = np.asarray(x)
    if dtype is not None and data.dtype != dtype:
        data = data.astype(dtype)
    return from_numpy(data, call)


def _has_numpy_leaf(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return any(_has_numpy_leaf(v) for v in x)
    return isinstance(x, (np.ndarray, np.generic))
