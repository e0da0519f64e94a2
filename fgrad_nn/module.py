"""`Module`: the description of a layer or network. It holds hyper-parameters only; parameters are values passed in.

    class Net(nn.Module):
        def __init__(self):
            self.conv = nn.Conv2d(1, 32, 3)
            self.norm = nn.BatchNorm2d(32)
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(32 * 26 * 26, 10)

        def forward(self, p, x):
            x = nn.relu(self.norm(p["norm"], self.conv(p["conv"], x)))
            return self.fc(p["fc"], self.drop(x.reshape(len(x), -1)))

    net = Net()
    params, state = net.init(key), net.init_state()
    y = net(params, x)                                             # without state: a pure function of params and x
    y, state = net.apply(params, state, x, key=key, train=True)    # with running statistics and dropout

`params` and `state` are nested dicts with the names of PyTorch's `state_dict`: `params["conv"]["weight"]`. Inside `forward`, `p`
reads like that dict; for each layer it also carries what `apply` was given for it: its state, a random key of its own, and whether
this is training. Nothing outlives the call: the new state is returned by `apply`.
"""

from __future__ import annotations

import inspect
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import fgrad
from fgrad import Array, random, tree
from fgrad.errors import FgradError, FgradTypeError, FgradValueError, describe, message
from fgrad_nn import show

Params = Mapping[str, Any]


class Run:
    """One call of a network: what was passed to it, and the new state that its layers report."""

    def __init__(self, key: Array | None, train: bool, state: Any):
        self.key, self.train, self.state = key, train, state
        self.new_state: dict[tuple[str, ...], Any] = {}
        self.keys_drawn: dict[tuple[str, ...], int] = {}
        self.on_call: Callable[[tuple[str, ...], Module, Any], None] | None = None


class Bound(Mapping[str, Any]):
    """The params of one layer during one call: a read-only dict, with the layer's state and key beside it.

    What a layer of one's own may use, apart from the entries: `train`, `state`, `set_state(new)`, `key()`, `path`.
    """

    __slots__ = ("_owner", "_params", "_path", "_run", "_transformed")

    def __init__(self, owner: Any, params: Any, run: Run, path: tuple[str, ...], transformed: bool = False):
        self._owner, self._params, self._run, self._path = owner, params, run, path
        self._transformed = (
            transformed  # whether the call is inside of a transform that the network itself makes
        )

    @property
    def path(self) -> str:
        """The layer's place in the network: `block.conv1`; empty for the network itself."""
        return ".".join(self._path)

    @property
    def train(self) -> bool:
        return self._run.train

    def __getitem__(self, name: str | int) -> Any:
        name = str(name)
        child = show.child_of(self._owner, name)
        if name in self._params:
            value = self._params[name]
        elif child is not None:
            value = {}  # a layer without parameters
        else:
            found = ", ".join(self._params) or "none"
            problem = f"there are no params '{name}'; found: {found}"
            raise FgradValueError(message(where(self._owner, self), problem, self._hint()))
        if isinstance(value, Mapping):
            return Bound(child, value, self._run, (*self._path, name), self._transformed)
        return value

    def _hint(self) -> str:
        outer = _calls.stack[-2] if len(_calls.stack) > 1 else None
        part = _params_in_forward(outer._owner, self._owner) if outer is not None else ""
        if outer is not None and part and outer._params is self._params:
            return f"pass this layer's part of the params: {part}"
        return "pass the dict that init(key) returned; print(net) shows the names"

    def __contains__(self, name: object) -> bool:
        return name in self._params or show.child_of(self._owner, str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def __repr__(self) -> str:
        return f"Bound({self.path or 'network'}: {', '.join(self._params)})"

    @property
    def state(self) -> Any:
        """This layer's state: as it was passed to `apply`, or as this call has left it."""
        run = self._run
        if self._path in run.new_state:
            return run.new_state[self._path]
        node = run.state
        if node is None:
            raise FgradValueError(
                message(
                    where(self._owner, self),
                    "this layer has state, which was not passed",
                    "call y, state = net.apply(params, state, x, train=...); state = net.init_state() to begin with",
                )
            )
        for name in self._path:
            if not isinstance(node, Mapping) or name not in node:
                raise FgradValueError(
                    message(
                        where(self._owner, self),
                        "the state has no entry for this layer",
                        "make it with net.init_state()",
                    )
                )
            node = node[name]
        return node

    def set_state(self, new: Any) -> None:
        """Report this layer's state after the call."""
        if self._transformed:
            raise FgradTypeError(
                message(
                    where(self._owner, self),
                    "the layer's new state cannot leave the transform (checkpoint, vmap, jit) that the network calls it in",
                    "transform a part of the network without such layers, or the whole of net.apply",
                )
            )
        self._run.new_state[self._path] = new

    def key(self) -> Array:
        """A random key that belongs to this layer and this use of it."""
        run = self._run
        if run.key is None:
            raise FgradValueError(
                message(
                    where(self._owner, self),
                    "a random key is needed in training",
                    "pass one: net.apply(params, state, x, key=key, train=True)",
                )
            )
        n = run.keys_drawn[self._path] = run.keys_drawn.get(self._path, 0) + 1
        return random.fold_in(random.fold_in(run.key, name_hash(self.path)), n)


# As a pytree it is its params, so that `fgrad.checkpoint(self.block)(p["block"], x)` works. A layer inside of such a nested transform
# must not report state: that would leave the transform by the back door. So what is built from leaves is marked.
tree.register(
    Bound,
    lambda p: ((dict(p._params),), (p._owner, p._run, p._path)),
    lambda about, children: Bound(about[0], children[0], about[1], about[2], transformed=True),
)


class _Calls(threading.local):
    """The layers whose `forward` runs now, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Bound] = []


_calls = _Calls()


def name_hash(name: str) -> int:
    """A number for a layer's name: keys folded with it stay the same when other layers are added."""
    return zlib.crc32(name.encode())


def where(layer: Any, p: Bound) -> str:
    """How errors name a layer: what it is, and where in the network."""
    text = repr(layer)
    if "\n" in text:  # a network: its layers would bury the message
        text = type(layer).__name__
    return f"{text}, layer '{p.path}'" if p.path else text


def layer_error(
    layer: Any, p: Bound, problem: str, fix: str = "", kind: type[FgradError] = FgradTypeError
) -> FgradError:
    """The error of a layer that was given the wrong thing."""
    return kind(message(where(layer, p), problem, fix))


class _Frozen(type):
    """Descriptions do not change once `__init__` is through."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of `__init__`, for `help` and editors, which would show this class's `__call__`."""
        _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(parameters)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.__dict__["_frozen"] = True
        return made


class Module(metaclass=_Frozen):
    """Base of layers and networks; see the head of this file.

    A subclass sets layers (or lists, tuples, dicts of them) as attributes in `__init__` and defines `forward(self, p, x)`. A
    layer with parameters of its own also overrides `init(self, key)`, one with state `init_state(self)`.
    """

    makes_params = False  # whether this class has parameters of its own, beside those of its layers

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.makes_params = cls.makes_params or "init" in cls.__dict__

    def forward(self, p: Bound, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define forward(self, p, x)")

    def init(self, key: Array) -> dict[str, Any]:
        """New parameters, from those of the layers among the attributes."""
        return {name: made for name, child in show.children(self) if (made := _init(child, key, name))}

    def init_state(self) -> dict[str, Any]:
        """The state to begin with (running statistics); an empty dict if there is none."""
        return {name: made for name, child in show.children(self) if (made := _init_state(child))}

    def __call__(self, *args: Any, key: Array | None = None, train: bool = False, **kwargs: Any) -> Any:
        """`forward` on `(params, *inputs)`, as a pure function.

        Layers without parameters, such as pooling and dropout, may be called with the inputs only. `key` and `train` serve networks with
        dropout; those with state are called through `apply`.
        """
        params, inputs = self._params_and_inputs(args)
        if isinstance(params, Bound):
            p = Bound(self, params._params, params._run, params._path, params._transformed)
            return self._enter(p, inputs, kwargs)
        outer = _calls.stack[-1] if _calls.stack else None
        name = show.path_of(outer._owner, self) if outer is not None else None
        if outer is not None and name is not None:  # `self.drop(x)` in a network's forward: part of its run
            p = Bound(self, params, outer._run, (*outer._path, *name), outer._transformed)
            return self._enter(p, inputs, kwargs)
        return self._enter(Bound(self, params, Run(key, train, None), ()), inputs, kwargs)

    def apply(
        self,
        params: Any,
        state: Any,
        *inputs: Any,
        key: Array | None = None,
        train: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """`(output, new state)`.

        Args:
            params: from `init`.
            state: from `init_state`, or from the last call; `{}` where there is none.
            key: a random key, if a layer draws random numbers in training.
            train: whether to use batch statistics and dropout.
        """
        run = Run(key, train, {} if state is None else state)
        _check_params(self, params)
        out = self._enter(Bound(self, params, run, ()), inputs, kwargs)
        return out, _merged(run.state, run.new_state)

    def _params_and_inputs(self, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        if args and isinstance(args[0], Mapping):
            return args[0], args[1:]
        if not show.has_params(self) and args:
            return {}, args
        _check_params(self, args[0] if args else None)
        raise AssertionError("unreachable")

    def _enter(self, p: Bound, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = p._path
        outer = _calls.stack[-1]._path if _calls.stack and _calls.stack[-1]._run is p._run else ()
        relative = ".".join(path[len(outer) :] if path[: len(outer)] == outer else path)
        _calls.stack.append(p)
        try:
            with fgrad.named_scope(relative) if relative else nullcontext():
                out = self.forward(p, *inputs, **kwargs)
        finally:
            _calls.stack.pop()
        if p._run.on_call is not None:
            p._run.on_call(path, self, out)
        return out

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_frozen"):
            raise FgradTypeError(
                message(
                    f"{type(self).__name__}.{name} = ...",
                    "layers are descriptions, which do not change after __init__",
                    "keep what changes in params or state; dataclasses.replace(layer, ...) makes a layer that differs",
                )
            )
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return show.tree_text(self)

    def __str__(self) -> str:
        return show.tree_text(self, shapes=show.shapes(lambda: self.init(random.key(0))))


def _params_in_forward(owner: Any, layer: Any) -> str:
    """How `owner`'s forward names the params of `layer`: `p["block"]["0"]`; empty if it is not one of its layers."""
    path = show.path_of(owner, layer)
    return "p" + "".join(f'["{name}"]' for name in path) if path else ""


def _check_params(layer: Module, params: Any) -> None:
    if not isinstance(params, Mapping):
        got = describe(params) if params is not None else "nothing"
        part = _params_in_forward(_calls.stack[-1]._owner, layer) if _calls.stack else ""
        fix = f"call layer({part}, x)" if part else "call layer(params, x) with params = layer.init(key)"
        raise FgradTypeError(
            message(
                type(layer).__name__,
                f"the first argument must be the params, a dict, got {got}",
                fix,
            )
        )


def _init(child: Any, key: Array, name: str) -> dict[str, Any]:
    """Params of a layer, or of a list or dict of layers, under keys folded with their names."""
    own = random.fold_in(key, name_hash(name))
    if isinstance(child, Module):
        return child.init(own)
    return {n: made for n, c in show.items(child) if (made := _init(c, own, n))}


def _init_state(child: Any) -> dict[str, Any]:
    if isinstance(child, Module):
        return child.init_state()
    return {n: made for n, c in show.items(child) if (made := _init_state(c))}


def _merged(state: Any, new: Mapping[tuple[str, ...], Any], at: tuple[str, ...] = ()) -> Any:
    """`state` with the entries that layers reported replaced."""
    if at in new:
        return new[at]
    if not isinstance(state, Mapping) or not any(path[: len(at)] == at for path in new):
        return state
    return {name: _merged(value, new, (*at, name)) for name, value in state.items()}
