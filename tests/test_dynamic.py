"""Without `jit` the graph is dynamic: Python's `if`, `while` and `print` see values. The examples are those of the PyTorch
tutorials, compared with PyTorch where it is installed."""

import random

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp


def test_while_on_a_norm_then_a_vector_jacobian_product(torch):
    """pytorch.org "A gentle introduction to torch.autograd": y doubles until its norm passes 1000."""
    start = np.float32([0.3, -1.2, 0.9])
    v = np.float32([0.1, 1.0, 0.0001])

    def f(x):
        y = x * 2
        while fnp.sqrt(fnp.sum(y * y)) < 1000:
            y = y * 2
        return y

    y, pull = fgrad.vjp(f, start)
    (gradient,) = pull(v)

    tx = torch.tensor(start, requires_grad=True)
    ty = tx * 2
    while ty.data.norm() < 1000:
        ty = ty * 2
    ty.backward(torch.tensor(v))
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(gradient, tx.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_if_on_a_sum(sign):
    def f(x):
        y = x * 2 if x.sum() > 0 else x + 1
        return (y * y).sum()

    x = np.float32([1.0, 2.0, -0.5]) * np.float32(sign)
    expected = 8 * x if sign > 0 else 2 * (x + 1)
    np.testing.assert_allclose(fgrad.grad(f)(x), expected, rtol=1e-6)


def test_depth_drawn_at_random_at_each_call(torch):
    """pytorch.org "Control flow + weight sharing": a polynomial whose highest terms are used a random number of times."""
    weights = [np.float32(w) for w in (0.1, -0.7, 0.4, 0.2, -0.3)]
    x = np.linspace(-2, 2, 20, dtype="float32")

    def net(p, x, draw, power):
        a, b, c, d, e = p
        y = a + b * x + c * power(x, 2) + d * power(x, 3)
        for exponent in range(4, draw.randint(4, 6)):
            y = y + e * power(x, exponent)
        return y

    depths = set()
    for seed in range(6):
        loss = lambda p: (net(p, fnp.asarray(x), random.Random(seed), fnp.power) ** 2).sum()
        ours = fgrad.grad(loss)(weights)
        tp = [torch.tensor(w, requires_grad=True) for w in weights]
        (net(tp, torch.tensor(x), random.Random(seed), torch.pow) ** 2).sum().backward()
        theirs = [0.0 if t.grad is None else t.grad.item() for t in tp]
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=1e-4)
        depths.add(random.Random(seed).randint(4, 6))
    assert len(depths) == 3


def test_print_shows_the_value(capsys):
    def f(x):
        print(x, f"{x[0]:.2f}")
        return (x**2).sum()

    fgrad.grad(f)(np.float32([1.5, 2.0]))
    assert capsys.readouterr().out == "[1.5 2. ] 1.50\n"
    fgrad.jit(f)(np.float32([1.5, 2.0]))  # no value: the type
    assert capsys.readouterr().out == "Tracer(float32[2]) Tracer(float32[])\n"


def test_repr_of_a_tracer_says_type_and_value():
    seen = []
    fgrad.grad(lambda x: seen.append(repr(x)) or x)(2.0)
    fgrad.jit(lambda x: seen.append(repr(x)) or x)(2.0)
    assert seen[0] == "Tracer(float32[], value=Array(2., dtype=float32))"
    assert seen[1] == "Tracer(float32[])"


def test_values_in_python_structures():
    """item, float, int, index and iteration of traced values under grad."""

    def f(x):
        if x[0].item() > 0 and float(x[1]) < 5 and int(x[1]) == 2:
            total = 0.0
            for v in x:
                total = total + v * int(v)
            return total
        return x.sum()

    np.testing.assert_allclose(fgrad.grad(f)(np.float32([1.5, 2.5, 3.5])), [1, 2, 3])


def test_second_derivatives_of_dynamic_code():
    def f(x):
        y = x
        while y < 50:
            y = y * x
        return y

    assert float(fgrad.grad(f)(3.0)) == pytest.approx(4 * 3.0**3)
    assert float(fgrad.grad(fgrad.grad(f))(3.0)) == pytest.approx(12 * 3.0**2)
    assert float(fgrad.grad(fgrad.grad(fgrad.grad(f)))(3.0)) == pytest.approx(24 * 3.0)
    assert float(fgrad.hessian(f)(3.0)) == pytest.approx(12 * 3.0**2)


def test_forward_mode_of_dynamic_code():
    y, dy = fgrad.jvp(lambda x: x**2 if x > 1 else -x, (3.0,), (1.0,))
    assert (float(y), float(dy)) == (9.0, 6.0)
    _, push = fgrad.linearize(lambda x: x**2 if x > 1 else -x, 0.5)
    assert float(push(2.0)) == -2.0


def test_try_and_early_return_and_recursion():
    def power(x, n):
        return x if n == 1 else x * power(x, n - 1)

    assert float(fgrad.grad(power)(2.0, 5)) == 80.0

    def guarded(x):
        try:
            if x > 1:
                raise ValueError
            return x
        except ValueError:
            return x * 10

    assert float(fgrad.grad(guarded)(2.0)) == 10.0


def test_a_jitted_function_inside_dynamic_code():
    step = fgrad.jit(lambda y, w: fnp.tanh(y * w))

    def f(w):
        y = w
        for _ in range(3):
            if y > 0:
                y = step(y, w)
        return y

    def plain(w):
        y = w
        for _ in range(3):
            y = fnp.tanh(y * w)
        return y

    for w in (0.8, 1.3):
        np.testing.assert_allclose(fgrad.grad(f)(w), fgrad.grad(plain)(w), rtol=1e-5)
        np.testing.assert_allclose(fgrad.grad(fgrad.grad(f))(w), fgrad.grad(fgrad.grad(plain))(w), rtol=1e-4)


def test_numpy_functions_on_a_traced_value_do_not_drop_the_gradient():
    """`np.sin(x)` would return a constant: it is an error. Operators with NumPy arrays and scalars work."""
    with pytest.raises(fgrad.TracerError, match=r"call fgrad\.numpy\.sin"):
        fgrad.grad(lambda x: np.sin(x).sum())(np.ones(3, "float32"))
    with pytest.raises(fgrad.TracerError, match=r"call fgrad\.numpy\.concatenate"):
        fgrad.grad(lambda x: np.concatenate([x, x]).sum())(np.ones(3, "float32"))
    w = np.float32([1, 2, 3])
    for f in (
        lambda x: (w * x).sum(),
        lambda x: (x * w).sum(),
        lambda x: w @ x,
        lambda x: np.multiply(w, x).sum(),
        lambda x: ((np.float32(1) + x) * w).sum(),
    ):
        np.testing.assert_allclose(fgrad.grad(f)(np.ones(3, "float32")), w)
        np.testing.assert_allclose(fgrad.jit(fgrad.grad(f))(np.ones(3, "float32")), w)
    assert bool(fgrad.jit(lambda x: (w < x).all() & (np.float32(5) > x).any())(w + 1))


def test_explicit_conversion_to_numpy_is_allowed_and_constant():
    g = fgrad.grad(lambda x: (x * np.asarray(x)).sum())(np.float32([1, 2]))
    np.testing.assert_allclose(g, [1, 2])
