"""Recurrent layers against PyTorch's: values, states and gradients with the same weights, in every layout."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad.codegen.program import ForStep, walk
from fgrad.errors import FgradError

KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
OPTIONS = {
    "plain": {},
    "layers": {"num_layers": 2, "batch_first": True},
    "both ways": {"num_layers": 2, "bidirectional": True},
    "without bias": {"bias": False},
}


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=3e-5, atol=3e-5)


def pair(torch, kind, **options):
    """Our layer, PyTorch's, and the params of both."""
    layer, theirs = KINDS[kind](5, 7, **options), getattr(torch.nn, kind)(5, 7, **options)
    params = {n: fnp.array(t.detach().numpy().copy()) for n, t in theirs.named_parameters()}
    assert {n: a.shape for n, a in layer.init(random.key(0)).items()} == {
        n: a.shape for n, a in params.items()
    }
    return layer, theirs, params


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layer_is_pytorchs(torch, rng, kind, options, compiled):
    layer, theirs, params = pair(torch, kind, **OPTIONS[options])
    x = rng.normal(size=(4, 6, 5)).astype(np.float32)
    batch = 4 if layer.batch_first else 6
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    starts = [
        rng.normal(size=(count, batch, 7)).astype(np.float32) for _ in range(2 if kind == "LSTM" else 1)
    ]
    tx = torch.tensor(x, requires_grad=True)
    ts = [torch.tensor(s, requires_grad=True) for s in starts]
    ty, tend = theirs(tx, tuple(ts) if len(ts) > 1 else ts[0])
    tends = tend if kind == "LSTM" else (tend,)
    seed = rng.normal(size=tuple(ty.shape)).astype(np.float32)
    ((ty * torch.tensor(seed)).sum() + sum((e**2).sum() for e in tends)).backward()

    def loss(p, x, starts):
        y, end = layer(p, x, tuple(starts) if len(starts) > 1 else starts[0])
        ends = end if isinstance(end, tuple) else (end,)
        return (y * seed).sum() + sum((e * e).sum() for e in ends), (y, ends)

    run = fgrad.grad(loss, (0, 1, 2), has_aux=True)
    run = fgrad.jit(run) if compiled else run
    (gp, gx, gs), (y, ends) = run(params, x, starts)
    close(y, ty)
    for ours, t in zip((*ends, gx, *gs), (*tends, tx.grad, *(t.grad for t in ts)), strict=True):
        close(ours, t)
    for n, t in theirs.named_parameters():
        close(gp[n], t.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence_and_a_start_of_zeros(torch, rng, kind):
    layer, theirs, params = pair(torch, kind)
    x = rng.normal(size=(4, 5)).astype(np.float32)
    for given in (x, x[:, None]):
        y, end = layer(params, given)
        ty, tend = theirs(torch.tensor(given))
        close(y, ty)
        for ours, t in zip(end if kind == "LSTM" else [end], tend if kind == "LSTM" else [tend], strict=True):
            close(ours, t)


def test_relu(torch, rng):
    layer, theirs, params = pair(torch, "RNN", nonlinearity="relu")
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    close(layer(params, x)[0], theirs(torch.tensor(x))[0])


def test_first_weights_are_spread_as_pytorchs(torch):
    layer, theirs = nn.LSTM(60, 50), torch.nn.LSTM(60, 50)
    for name, value in layer.init(random.key(0)).items():
        a, b = np.asarray(value), dict(theirs.named_parameters())[name].detach().numpy()
        assert abs(a).max() <= 50**-0.5 and abs(a.std() - b.std()) < 0.1 * b.std()


def test_dropout_between_layers(rng):
    layer = nn.GRU(5, 64, num_layers=2, dropout=0.5)
    params, x = layer.init(random.key(0)), rng.normal(size=(3, 2, 5)).astype(np.float32)
    kept, _ = layer(params, x)
    (dropped, _), _ = layer.apply(params, None, x, key=random.key(1), train=True)
    (again, _), _ = layer.apply(params, None, x, key=random.key(1), train=True)
    np.testing.assert_array_equal(np.asarray(dropped), np.asarray(again))
    assert not np.allclose(np.asarray(kept), np.asarray(dropped))


def test_a_training_step_runs_part_by_part():
    layer = nn.LSTM(64, 128)
    params, x = layer.init(random.key(0)), np.ones((64, 32, 64), np.float32)
    step = fgrad.jit(fgrad.grad(lambda p, x: layer(p, x)[0].sum()))
    loops = [s for s in walk(step.lower(params, x).program.body) if isinstance(s, ForStep) and s.parallel]
    assert len(loops) == 2


BAD = {
    "features": (np.ones((4, 2, 3), "f"), None, r"\(time, batch, 5\)", "5 features"),
    "axes": (np.ones((5,), "f"), None, "expected an input", ""),
    "one array": (np.ones((4, 2, 5), "f"), np.ones((1, 2, 7), "f"), "a pair", ""),
    "state": (np.ones((4, 2, 5), "f"), (np.ones((2, 7), "f"),) * 2, r"\(1, 2, 7\)", "None for zeros"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_input_says_what_to_do(name):
    x, state, problem, fix = BAD[name]
    layer = nn.LSTM(5, 7)
    with pytest.raises(FgradError, match=rf"LSTM\(5, 7\).*{problem}") as info:
        layer(layer.init(random.key(0)), x, state)
    assert fix in str(info.value) and "test_recurrent.py" in str(info.value)


WRONG = {
    "hidden_size must be a positive int": lambda: nn.LSTM(2, 0),
    "nonlinearity must be 'tanh' or 'relu'": lambda: nn.RNN(2, 3, nonlinearity="gelu"),
    "dropout must be a probability below 1": lambda: nn.GRU(2, 3, dropout=1.0),
    "bidirectional must be True or False, got 'yes'": lambda: nn.LSTM(2, 3, bidirectional="yes"),
    "batch_first must be True or False, got 1": lambda: nn.GRU(2, 3, batch_first=1),
}


@pytest.mark.parametrize("problem", WRONG)
def test_wrong_options(problem):
    with pytest.raises(FgradError, match=problem):
        WRONG[problem]()
