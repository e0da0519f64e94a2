"""README's Python blocks run as they stand, one after the other, and do what the text says."""

import pathlib
import re

import numpy as np

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_blocks_run_in_order(capsys):
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)

    printed = capsys.readouterr().out
    assert "tanh" in printed and "README.md:" in printed, "the graph, with file and line"
    assert "for i0 in range(" in printed, "the kernels, as Python"
    # PyTorch's autograd tutorial, "Optional reading: vector Jacobian product": a power of two times the cotangent
    (slope,) = names["pullback"](names["fnp"].array([0.1, 1.0, 0.0001]))
    np.testing.assert_allclose(slope, np.array([0.1, 1.0, 0.0001]) * 1024, rtol=1e-6)

    x, y = np.ones((4, 1, 28, 28), "float32"), np.arange(4)
    params, state, losses = names["params"], names["state"], []
    for _ in range(3):
        params, state, value = names["step"](params, state, x, y)
        losses.append(float(value))
    assert losses[2] < losses[0]
