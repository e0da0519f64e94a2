"""Every layer against PyTorch: value and gradients with the same weights; and errors that say what to do."""

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad.errors import FgradError

# name -> (our layer, torch expression, input shape)
LAYERS = {
    "linear": (nn.Linear(5, 7), "Linear(5, 7)", (3, 5)),
    "linear without bias": (nn.Linear(5, 7, bias=False), "Linear(5, 7, bias=False)", (2, 3, 5)),
    "linear of a vector": (nn.Linear(5, 7), "Linear(5, 7)", (5,)),
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1), "Conv1d(3, 4, 3, padding=1)", (2, 3, 9)),
    "conv2d": (nn.Conv2d(3, 6, 5), "Conv2d(3, 6, 5)", (2, 3, 9, 8)),
    "conv2d strided": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        "Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)",
        (2, 4, 9, 8),
    ),
    "conv2d same": (nn.Conv2d(2, 3, 5, padding="same"), "Conv2d(2, 3, 5, padding='same')", (2, 2, 7, 6)),
    "conv2d single": (nn.Conv2d(2, 3, 3), "Conv2d(2, 3, 3)", (2, 7, 6)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), "Conv2d(4, 8, 3, groups=4)", (2, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2), "Conv3d(2, 3, 2)", (1, 2, 4, 3, 5)),
    "conv_transpose1d": (
        nn.ConvTranspose1d(3, 4, 3, stride=2),
        "ConvTranspose1d(3, 4, 3, stride=2)",
        (2, 3, 5),
    ),
    "conv_transpose2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        "ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)",
        (2, 4, 5, 4),
    ),
    "max_pool1d": (nn.MaxPool1d(3, 2), "MaxPool1d(3, 2)", (2, 3, 9)),
    "max_pool2d": (nn.MaxPool2d(2), "MaxPool2d(2)", (2, 3, 7, 6)),
    "max_pool2d padded": (nn.MaxPool2d(3, 2, padding=1), "MaxPool2d(3, 2, padding=1)", (2, 3, 7, 6)),
    "avg_pool1d": (nn.AvgPool1d(2), "AvgPool1d(2)", (2, 3, 9)),
    "avg_pool2d": (nn.AvgPool2d((3, 2), 2, padding=1), "AvgPool2d((3, 2), 2, padding=1)", (2, 3, 7, 6)),
    "avg_pool2d without pad": (
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        "AvgPool2d(3, 2, padding=1, count_include_pad=False)",
        (2, 3, 7, 6),
    ),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((3, 2)), "AdaptiveAvgPool2d((3, 2))", (2, 3, 7, 6)),
    "layer_norm": (nn.LayerNorm(6), "LayerNorm(6)", (2, 3, 6)),
    "layer_norm 2d": (nn.LayerNorm((3, 6), bias=False), "LayerNorm((3, 6), bias=False)", (2, 3, 6)),
    "rms_norm": (nn.RMSNorm(6), "RMSNorm(6)", (2, 3, 6)),
    "group_norm": (nn.GroupNorm(2, 6), "GroupNorm(2, 6)", (2, 6, 3, 4)),
    "flatten": (nn.Flatten(), "Flatten()", (2, 3, 4)),
    "flatten some": (nn.Flatten(0, 1), "Flatten(0, 1)", (2, 3, 4)),
    "identity": (nn.Identity(), "Identity()", (2, 3)),
    "relu": (nn.ReLU(), "ReLU()", (4, 5)),
    "relu6": (nn.ReLU6(), "ReLU6()", (4, 5)),
    "leaky_relu": (nn.LeakyReLU(0.2), "LeakyReLU(0.2)", (4, 5)),
    "elu": (nn.ELU(1.5), "ELU(1.5)", (4, 5)),
    "selu": (nn.SELU(), "SELU()", (4, 5)),
    "gelu": (nn.GELU(), "GELU()", (4, 5)),
    "gelu tanh": (nn.GELU("tanh"), "GELU('tanh')", (4, 5)),
    "silu": (nn.SiLU(), "SiLU()", (4, 5)),
    "mish": (nn.Mish(), "Mish()", (4, 5)),
    "hardswish": (nn.Hardswish(), "Hardswish()", (4, 5)),
    "hardsigmoid": (nn.Hardsigmoid(), "Hardsigmoid()", (4, 5)),
    "hardtanh": (nn.Hardtanh(), "Hardtanh()", (4, 5)),
    "sigmoid": (nn.Sigmoid(), "Sigmoid()", (4, 5)),
    "log_sigmoid": (nn.LogSigmoid(), "LogSigmoid()", (4, 5)),
    "tanh": (nn.Tanh(), "Tanh()", (4, 5)),
    "softplus": (nn.Softplus(), "Softplus()", (4, 5)),
    "softsign": (nn.Softsign(), "Softsign()", (4, 5)),
    "softmax": (nn.Softmax(1), "Softmax(1)", (4, 5)),
    "log_softmax": (nn.LogSoftmax(), "LogSoftmax(-1)", (4, 5)),
}


def arrays(params):
    return {name: np.asarray(x) for name, x in params.items()}


def close(ours, theirs, rtol=2e-5, atol=2e-5):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_pytorchs(torch, rng, name):
    layer, expression, shape = LAYERS[name]
    theirs = eval(expression, vars(torch.nn))
    params = layer.init(random.key(0))
    state = theirs.state_dict()
    assert {n: tuple(t.shape) for n, t in state.items()} == {n: a.shape for n, a in params.items()}
    for n, t in state.items():
        t.copy_(torch.tensor(np.asarray(params[n]).copy()))
    x = (3 * rng.normal(size=shape)).astype(np.float32)
    x.ravel()[:2] = 0.0  # the derivatives at 0 are PyTorch's too
    tx = torch.tensor(x, requires_grad=True)
    y = theirs(tx)
    close(layer(params, x), y)
    seed = rng.normal(size=y.shape).astype(np.float32)
    y.backward(torch.tensor(seed))
    gp, gx = fgrad.grad(lambda p, v: fnp.sum(layer(p, v) * seed), argnums=(0, 1))(params, x)
    close(gx, tx.grad)
    for n, t in theirs.named_parameters():
        close(gp[n], t.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["linear", "conv2d strided", "max_pool2d padded", "avg_pool2d without pad", "layer_norm", "gelu"]
)
def test_compiled_layer_is_eager(rng, name):
    layer, _, shape = LAYERS[name]
    params, x = layer.init(random.key(0)), rng.normal(size=shape).astype(np.float32)

    def value_and_slopes(p, v):
        return fgrad.value_and_grad(lambda q, w: fnp.sum(layer(q, w) ** 2), argnums=(0, 1))(p, v)

    eager, compiled = value_and_slopes(params, x), fgrad.jit(value_and_slopes)(params, x)
    for a, b in zip(fgrad.tree.leaves(eager), fgrad.tree.leaves(compiled)):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind, shape", [("1d", (8, 4)), ("1d", (3, 4, 5)), ("2d", (3, 4, 5, 6))])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_pytorchs(torch, rng, kind, shape, momentum):
    layer = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d}[kind](4, momentum=momentum)
    theirs = {"1d": torch.nn.BatchNorm1d, "2d": torch.nn.BatchNorm2d}[kind](4, momentum=momentum)
    params = {"weight": rng.random(4).astype(np.float32), "bias": rng.random(4).astype(np.float32)}
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(params["weight"]))
        theirs.bias.copy_(torch.tensor(params["bias"]))
    state = layer.init_state()
    assert set(state) | set(params) == set(theirs.state_dict())
    for _ in range(3):
        x = (2 + 3 * rng.normal(size=shape)).astype(np.float32)
        y, state = layer.apply(params, state, x, train=True)
        tx = torch.tensor(x, requires_grad=True)
        ty = theirs(tx)
        close(y, ty)
        for n, value in state.items():
            close(value, theirs.state_dict()[n])
    seed = rng.normal(size=shape).astype(np.float32)
    ty.backward(torch.tensor(seed))

    def loss(p, v):
        out, new = layer.apply(p, layer.init_state(), v, train=True)
        return fnp.sum(out * seed), new

    (gp, gx), _ = fgrad.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    close(gx, tx.grad, atol=1e-4)
    close(gp["weight"], theirs.weight.grad, atol=1e-4)
    close(gp["bias"], theirs.bias.grad, atol=1e-4)
    y, same = layer.apply(params, state, x)
    close(y, theirs.eval()(tx))
    assert same == state or all(same[n] is state[n] for n in state)


def test_embedding_is_pytorchs(torch, rng):
    layer, theirs = nn.Embedding(10, 3, padding_idx=2), torch.nn.Embedding(10, 3, padding_idx=2)
    params = layer.init(random.key(0))
    assert (np.asarray(params["weight"])[2] == 0).all()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(params["weight"]).copy()))
    ids = np.array([[1, 2, 9], [2, 1, 1]])
    y = theirs(torch.tensor(ids))
    close(layer(params, ids), y)
    seed = rng.normal(size=y.shape).astype(np.float32)
    y.backward(torch.tensor(seed))
    grads = fgrad.grad(lambda p: fnp.sum(layer(p, ids) * seed))(params)
    close(grads["weight"], theirs.weight.grad)


def test_dropout():
    x = np.ones((200, 100), np.float32)
    layer = nn.Dropout(0.25)
    assert layer({}, x) is x or (np.asarray(layer({}, x)) == x).all()
    y = np.asarray(layer({}, x, key=random.key(0), train=True))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (y == np.asarray(layer({}, x, key=random.key(0), train=True))).all()
    assert (y != np.asarray(layer({}, x, key=random.key(1), train=True))).any()
    compiled = fgrad.jit(lambda v, k: layer({}, v, key=k, train=True))(x, random.key(0))
    assert (y == np.asarray(compiled)).all()
    channels = np.asarray(
        nn.Dropout2d(0.5)({}, np.ones((4, 8, 3, 3), np.float32), key=random.key(0), train=True)
    )
    assert all(len(np.unique(c)) == 1 for image in channels for c in image)
    assert (np.asarray(nn.Dropout(1.0)({}, x, key=random.key(0), train=True)) == 0).all()


f32 = np.float32
BAD = {
    "linear features": (
        nn.Linear(5, 7),
        np.ones((3, 4), f32),
        r"Linear\(5, 7\)",
        "expected .*5",
        "Linear(4, 7)",
    ),
    "linear image": (
        nn.Linear(784, 7),
        np.ones((3, 1, 28, 28), f32),
        r"Linear\(784, 7\)",
        "784",
        "nn.Flatten()",
    ),
    "linear transposed": (nn.Linear(5, 7), np.ones((5, 3), f32), "Linear", "5", "x.T"),
    "linear dtype": (nn.Linear(5, 7), np.ones((3, 5)), "Linear", "float64", "x.astype('float32')"),
    "conv channels": (
        nn.Conv2d(3, 6, 5),
        np.ones((2, 1, 9, 9), f32),
        r"Conv2d\(3, 6, 5\)",
        "3 channels",
        "give 3 channels",
    ),
    "conv no channel": (nn.Conv2d(1, 6, 5), np.ones((64, 28, 28), f32), "Conv2d", "1 channels", "x[:, None]"),
    "conv last": (
        nn.Conv2d(3, 6, 5),
        np.ones((2, 9, 9, 3), f32),
        "Conv2d",
        "3 channels",
        "transpose(x, (0, 3, 1, 2))",
    ),
    "conv 2 axes": (nn.Conv2d(3, 6, 5), np.ones((9, 9), f32), "Conv2d", "shape", "x[:, None]"),
    "conv small": (nn.Conv2d(3, 6, 5), np.ones((2, 3, 4, 9), f32), "Conv2d", "spans 5", "kernel_size"),
    "conv bytes": (nn.Conv2d(3, 6, 5), np.ones((2, 3, 9, 9), np.uint8), "Conv2d", "uint8", "/ 255"),
    "transpose channels": (
        nn.ConvTranspose2d(3, 6, 5),
        np.ones((2, 1, 9, 9), f32),
        "ConvTranspose2d",
        "3 channels",
        "",
    ),
    "max_pool small": (
        nn.MaxPool2d(3),
        np.ones((2, 3, 2, 9), f32),
        r"MaxPool2d\(3\)",
        "spans 3",
        "kernel_size",
    ),
    "avg_pool axes": (nn.AvgPool2d(3), np.ones((2, 9), f32), r"AvgPool2d\(3\)", "shape", "x[:, None]"),
    "avg_pool ints": (
        nn.AvgPool2d(3),
        np.ones((2, 3, 9, 9), np.int32),
        "AvgPool2d",
        "int32",
        "astype('float32')",
    ),
    "adaptive axes": (nn.AdaptiveAvgPool2d(), np.ones((2, 9), f32), "AdaptiveAvgPool2d", "shape", ""),
    "batch_norm channels": (
        nn.BatchNorm2d(4),
        np.ones((2, 3, 5, 5), f32),
        r"BatchNorm2d\(4\)",
        "4, H, W",
        "3 features",
    ),
    "batch_norm axes": (nn.BatchNorm2d(4), np.ones((2, 4), f32), "BatchNorm2d", "4, H, W", "reshape"),
    "batch_norm1d": (nn.BatchNorm1d(4), np.ones((2, 5), f32), "BatchNorm1d", "4", "5 features"),
    "layer_norm": (nn.LayerNorm(6), np.ones((2, 5), f32), r"LayerNorm\(6\)", "6", "LayerNorm(5)"),
    "rms_norm": (nn.RMSNorm(6), np.ones((2, 5), f32), r"RMSNorm\(6\)", "6", "RMSNorm(5)"),
    "group_norm": (nn.GroupNorm(2, 6), np.ones((2, 5, 3), f32), "GroupNorm", "6", "5 channels"),
    "embedding floats": (
        nn.Embedding(5, 3),
        np.ones((2,), f32),
        r"Embedding\(5, 3\)",
        "integers",
        "x.astype('int64')",
    ),
    "embedding negative": (
        nn.Embedding(5, 3),
        np.array([1, -1]),
        r"Embedding\(5, 3\)",
        "index -1 is outside of the 5 rows",
        "from 0 to 4",
    ),
    "dropout2d axes": (nn.Dropout2d(), np.ones((2, 3), f32), "Dropout2d", r"\(N, C, ...\)", "x[None]"),
    "dropout ints": (nn.Dropout(), np.ones((2,), np.int64), "Dropout", "int64", "astype('float32')"),
    "flatten": (nn.Flatten(), np.ones((2,), f32), r"Flatten\(\)", "axes 1", "x[None]"),
    "not an array": (nn.Linear(5, 7), {"a": 1}, "Linear", "array", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_input_names_layer_line_and_fix(name):
    layer, x, called, problem, fix = BAD[name]
    net = nn.Sequential(first=layer)
    with pytest.raises(FgradError, match=rf"{called}.*layer 'first': .*{problem}") as info:
        net(net.init(random.key(0)), x)
    text = str(info.value)
    assert "test_layers.py" in text, "the user's line"
    assert fix in text


@pytest.mark.parametrize("indices", [[0, 5], [-1, 0]])
@pytest.mark.parametrize("dtype", ["int8", "int64"])
def test_index_outside_an_embedding_is_an_error_in_compiled_code_too(indices, dtype):
    layer = nn.Embedding(5, 3)
    run = fgrad.jit(lambda params, x: layer(params, x))
    params = layer.init(random.key(0))
    np.testing.assert_array_equal(run(params, np.array([4, 0], dtype)), params["weight"][np.array([4, 0])])
    with pytest.raises(FgradError, match="out of bounds for axis 0 with size 5"):
        np.asarray(run(params, np.array(indices, dtype)))


LAYERS_WITH_PARAMS = [
    nn.Linear(4, 3),
    nn.Conv2d(4, 3, 1),
    nn.ConvTranspose2d(4, 3, 1),
    nn.BatchNorm2d(4),
    nn.LayerNorm(4),
    nn.RMSNorm(4),
    nn.GroupNorm(2, 4),
]


@pytest.mark.parametrize("layer", LAYERS_WITH_PARAMS, ids=lambda layer: type(layer).__name__)
def test_params_of_another_shape_are_not_broadcast(layer):
    x = np.ones((2, 4, 4, 4), f32)
    params, state = layer.init(random.key(0)), layer.init_state()
    layer.apply(params, state, x)
    for name in params:
        wrong = {**params, name: params[name].reshape(-1)[:1]}
        with pytest.raises(FgradError, match=rf"{type(layer).__name__}.*param '{name}' is float32\[1\]"):
            layer.apply(wrong, state, x)


def test_wrong_state_of_batch_norm():
    layer, x = nn.BatchNorm1d(3), np.ones((2, 3), f32)
    params = layer.init(random.key(0))
    for train in (False, True):
        with pytest.raises(FgradError, match="state has no 'running_mean'; found: none"):
            layer.apply(params, {}, x, train=train)
        with pytest.raises(FgradError, match=r"state 'running_mean' is float32\[1\]"):
            layer.apply(params, nn.BatchNorm1d(1).init_state(), x, train=train)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: nn.Linear(0, 3), "in_features must be a positive int"),
        (lambda: nn.Linear(3, 2.5), "out_features must be a positive int"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "not divisible by groups=2"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "int or 2 ints"),
        (lambda: nn.Conv2d(3, 4, 3, padding="sam"), "'same' or 'valid'"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), "int of at least 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding=(1, 1, 1)), "2 of them"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=1), "less than stride=1"),
        (lambda: nn.MaxPool2d(2, padding=2), "at most half"),
        (lambda: nn.MaxPool2d((2, 2, 2)), "int or 2 ints"),
        (lambda: nn.AdaptiveAvgPool2d(0), "positive int"),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), "int or 2 ints"),
        (lambda: nn.LayerNorm(2.5), "positive int"),
        (lambda: nn.RMSNorm((3, 0)), "positive int"),
        (lambda: nn.Dropout("0.5"), "between 0 and 1"),
        (lambda: nn.gelu(np.ones(3, f32), "erf"), "'none' or 'tanh'"),
        (lambda: nn.Sequential([nn.ReLU()]), "unpack it"),
        (lambda: nn.Dropout(1.5), "between 0 and 1"),
        (lambda: nn.Embedding(5, 3, padding_idx=7), "outside 5 rows"),
        (lambda: nn.GroupNorm(4, 6), "do not make 4 groups"),
        (lambda: nn.Sequential(nn.ReLU), r"make it: ReLU\(...\)"),
        (lambda: nn.Sequential(nn.ReLU(), 3), "neither a layer nor a function"),
    ],
)
def test_wrong_hyperparameters(make, text):
    with pytest.raises(FgradError, match=text) as info:
        make()
    assert "test_layers.py" in str(info.value)
