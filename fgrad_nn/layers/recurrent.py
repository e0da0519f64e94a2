"""Recurrent layers: `RNN` (Elman, 1990), `LSTM` (Hochreiter and Schmidhuber, 1997), `GRU` (Cho and others, 2014).

With PyTorch's equations, gate order and parameter names. The product of all inputs with the input weights is one product before
the loop over time; the loop is `fgrad.scan`, which compiled code runs natively, a part of the batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import fgrad
import fgrad.numpy as fnp
from fgrad import Array, random, special
from fgrad.errors import describe
from fgrad_nn.layers.check import array_input, param, positive, required
from fgrad_nn.module import Bound, Module, layer_error

State = tuple[Array, ...]


@dataclass(frozen=True, repr=False)
class _Recurrent(Module):
    """What the three kinds have in common. `_GATES` is how many rows of weights a unit has, `_STATES` how many arrays its state."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    dtype: Any = "float32"

    _GATES: ClassVar[int] = 1
    _STATES: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive(self, input_size=self.input_size, hidden_size=self.hidden_size, num_layers=self.num_layers)
        number = isinstance(self.dropout, (int, float))
        required(
            number and 0 <= self.dropout < 1,
            self,
            f"dropout must be a probability below 1, got {self.dropout!r}",
        )
        for name in ("bidirectional", "batch_first"):
            value = getattr(self, name)
            required(isinstance(value, bool), self, f"{name} must be True or False, got {value!r}")

    # ---------------------------------------------------------------------------------------- params

    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        rows = self._GATES * self.hidden_size
        for n in range(self.num_layers):
            width = self.input_size if n == 0 else self.hidden_size * len(self._directions())
            for way in self._directions():
                yield f"weight_ih_l{n}{way}", (rows, width)
                yield f"weight_hh_l{n}{way}", (rows, self.hidden_size)
                if self.bias:
                    yield f"bias_ih_l{n}{way}", (rows,)
                    yield f"bias_hh_l{n}{way}", (rows,)

    def init(self, key: Array) -> dict[str, Array]:
        bound = 1 / math.sqrt(self.hidden_size)
        shapes = dict(self._shapes())
        keys = random.split(key, len(shapes))
        return {
            name: random.uniform(keys[n], shape, self.dtype, -bound, bound)
            for n, (name, shape) in enumerate(shapes.items())
        }

    # ---------------------------------------------------------------------------------------- running

    def forward(self, p: Bound, x: Any, state: Any = None) -> tuple[Array, Any]:
        shapes = dict(self._shapes())
        weights = {name: param(self, p, name, shape) for name, shape in shapes.items()}
        dtype = weights["weight_ih_l0"].dtype
        x = array_input(self, p, x, dtype)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            order = "(batch, time" if self.batch_first else "(time, batch"
            raise layer_error(
                self,
                p,
                f"expected an input of shape {order}, {self.input_size}) or (time, {self.input_size}), got {describe(x)}",
                f"give inputs of {self.input_size} features, or make the layer for {x.shape[-1] if x.ndim else 1}",
            )
        single = x.ndim == 2
        if single:
            x = x[:, None]
        elif self.batch_first:
            x = fnp.swapaxes(x, 0, 1)
        first = self._start(p, state, x, single)
        last: list[State] = []
        for n in range(self.num_layers):
            outs = []
            for way in self._directions():
                start = tuple(s[len(last)] for s in first)
                ys, end = self._run(weights, f"_l{n}{way}", x, start, reverse=bool(way))
                outs.append(ys)
                last.append(end)
            x = outs[0] if len(outs) == 1 else fnp.concatenate(outs, axis=-1)
            if self.dropout and p.train and n < self.num_layers - 1:
                keep = random.bernoulli(p.key(), 1 - self.dropout, x.shape)
                x = fnp.where(keep, x / (1 - self.dropout), 0)
        ends = tuple(fnp.stack([end[n] for end in last]) for n in range(self._STATES))
        if single:
            x, ends = x[:, 0], tuple(e[:, 0] for e in ends)
        elif self.batch_first:
            x = fnp.swapaxes(x, 0, 1)
        return x, ends if self._STATES > 1 else ends[0]

    def _start(self, p: Bound, state: Any, x: Array, single: bool) -> State:
        """The first state: for each of its arrays, (layers * directions, batch, hidden_size)."""
        count = self.num_layers * len(self._directions())
        batch, dtype = x.shape[1], x.dtype
        if state is None:
            return (fnp.zeros_like(x, shape=(count, batch, self.hidden_size)),) * self._STATES
        given = state if self._STATES > 1 else (state,)
        wanted = (count, self.hidden_size) if single else (count, batch, self.hidden_size)
        text = "a pair (h, c) of arrays" if self._STATES > 1 else "an array"
        if not isinstance(given, (tuple, list)) or len(given) != self._STATES:
            raise layer_error(self, p, f"the state must be {text} of shape {wanted}, got {describe(state)}")
        arrays = tuple(array_input(self, p, s, dtype) for s in given)
        for s in arrays:
            if s.shape != wanted:
                raise layer_error(
                    self,
                    p,
                    f"the state must be {text} of shape {wanted}, got {describe(s)}",
                    "pass what an earlier call returned, or None for zeros; the batch is its axis 1, with batch_first too",
                )
        return tuple(s[:, None] for s in arrays) if single else arrays

    def _run(
        self, weights: dict[str, Array], suffix: str, x: Array, start: State, reverse: bool
    ) -> tuple[Array, State]:
        """One layer in one direction over (time, batch, features)."""
        inputs = fnp.inner(x, weights["weight_ih" + suffix])
        if self.bias:
            inputs = inputs + weights["bias_ih" + suffix]
        recurrent, bias = weights["weight_hh" + suffix], weights.get("bias_hh" + suffix)

        def step(state: State, given: Array) -> tuple[State, Array]:
            product = fnp.inner(state[0], recurrent)
            new = self._cell(given, product if bias is None else product + bias, state)
            return new, new[0]

        end, ys = fgrad.scan(step, start, inputs, reverse=reverse)
        return ys, end

    def _cell(self, given: Array, recurrent: Array, state: State) -> State:
        """The new state, from the products of the input and of the state with their weights."""
        raise NotImplementedError

    def _gates(self, x: Array) -> list[Array]:
        return [x[:, n * self.hidden_size : (n + 1) * self.hidden_size] for n in range(self._GATES)]


@dataclass(frozen=True, repr=False)
class RNN(_Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), over time; with `nonlinearity="relu"` the same with relu.

    `y, h = rnn(params, x, h0=None)`: x is (time, batch, input_size), or (batch, time, input_size) with `batch_first`, or
    (time, input_size) for one sequence. y holds the last layer's outputs, in the layout of x, with hidden_size features (twice as
    many if `bidirectional`, backward ones last); h, like h0, is (layers * directions, batch, hidden_size), zeros if not given.
    `dropout` acts between layers in training.

    Params, as PyTorch's: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `..._l0_reverse`, `..._l1`; all uniform
    on ±1/sqrt(hidden_size).
    """

    nonlinearity: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.nonlinearity in ("tanh", "relu")
        required(known, self, f"nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")

    def _cell(self, given: Array, recurrent: Array, state: State) -> State:
        total = given + recurrent
        return (fnp.tanh(total) if self.nonlinearity == "tanh" else fnp.maximum(total, 0.0),)


@dataclass(frozen=True, repr=False)
class LSTM(_Recurrent):
    """c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c'), with i, f, g, o the rows of W_ih x + b_ih + W_hh h + b_hh, over time.

    `y, (h, c) = lstm(params, x, (h0, c0))`; shapes, params and options as for `RNN`, with four times as many rows of weights.
    """

    _GATES: ClassVar[int] = 4
    _STATES: ClassVar[int] = 2

    def _cell(self, given: Array, recurrent: Array, state: State) -> State:
        i, f, g, o = self._gates(given + recurrent)
        c = special.sigmoid(f) * state[1] + special.sigmoid(i) * fnp.tanh(g)
        return special.sigmoid(o) * fnp.tanh(c), c


@dataclass(frozen=True, repr=False)
class GRU(_Recurrent):
    """h' = (1 - z) n + z h with r, z = σ(...) and n = tanh(W_in x + b_in + r (W_hn h + b_hn)), over time.

    `y, h = gru(params, x, h0=None)`; shapes, params and options as for `RNN`, with rows of weights for r, z and n.
    """

    _GATES: ClassVar[int] = 3

    def _cell(self, given: Array, recurrent: Array, state: State) -> State:
        (xr, xz, xn), (hr, hz, hn) = self._gates(given), self._gates(recurrent)
        z = special.sigmoid(xz + hz)
        n = fnp.tanh(xn + special.sigmoid(xr + hr) * hn)
        return ((1 - z) * n + z * state[0],)
