"""Random graphs: the compiled program computes what the equations say, whatever was fused."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import helpers as h

UNARY = ["neg", "abs", "square", "tanh", "sigmoid", "floor", "sin"]
BINARY = ["add", "sub", "mul", "maximum", "minimum"]


def grow(b, pool, draw):
    """Add one random equation on a value of `pool`."""
    x = draw(st.sampled_from(pool))
    shape = x.type.shape
    same = [v for v in pool if v.type.shape == shape]
    kind = draw(
        st.sampled_from(["unary", "binary", "binary", "reduce", "spread", "structure", "select", "slice"])
    )
    if kind == "unary":
        return b(draw(st.sampled_from(UNARY)), x)
    if kind == "binary":
        return b(draw(st.sampled_from(BINARY)), x, draw(st.sampled_from(same)))
    if kind == "select":
        y = draw(st.sampled_from(same))
        return b("select", b("lt", x, y), y, b("neg", x))
    if kind == "reduce" and shape:
        axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
        return b(draw(st.sampled_from(["reduce_sum", "reduce_max"])), x, axes=tuple(sorted(axes)))
    if kind == "spread":
        # Back to the shape of some other value, by repeating along the axes that do not fit.
        for y in pool:
            axes, at = [], 0
            for size in shape:
                while at < len(y.type.shape) and y.type.shape[at] != size:
                    at += 1
                if at < len(y.type.shape):
                    axes.append(at)
                    at += 1
            if len(axes) == len(shape) and y.type.shape != shape:
                return b("broadcast", x, shape=y.type.shape, axes=tuple(axes))
    if kind == "structure" and shape:
        which = draw(st.sampled_from(["flat", "transpose", "flip", "pad", "cat"]))
        if which == "flat":
            return b("reshape", x, shape=(x.type.size,))
        if which == "transpose":
            return b("transpose", x, perm=tuple(draw(st.permutations(range(len(shape))))))
        if which == "flip":
            return b("flip", x, axes=(len(shape) - 1,))
        if which == "cat":
            return b("concatenate", x, x, axis=0)
        ones = (1,) * len(shape)
        zeros = (0,) * len(shape)
        return b("pad", x, 0.5, low=ones, high=zeros, interior=zeros)
    if kind == "slice" and shape and min(shape) > 1:
        return b("slice", x, start=(1,) * len(shape), stop=shape, step=(1,) * len(shape))
    return b("neg", x)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graph(data):
    b = h.Build()
    shapes = data.draw(
        st.sampled_from([[(3, 4), (3, 4), (4,)], [(2, 3, 4), (3,), (2, 3, 4)], [(6,), (6,)], [(2, 1, 3), ()]])
    )
    pool = [b.input(s) for s in shapes]
    for _ in range(data.draw(st.integers(3, 18))):
        new = grow(b, pool, data.draw)
        if 0 < new.type.size <= 200:
            pool.append(new)
    outputs = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4))
    rng = np.random.default_rng(0)
    inputs = [rng.uniform(-1, 1, s).astype(np.float32) for s in shapes]
    graph = b.graph(*outputs)
    if all(
        np.abs(v).max(initial=0) < 1e3 for v in h.evaluate(graph, inputs)
    ):  # else rounding decides floor and max
        h.run(graph, inputs)
