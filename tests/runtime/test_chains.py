"""Chains of steps over samples: the same results as op by op, the same bits for any number of threads, no shared bytes."""

import itertools

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import lax
from fgrad.codegen.pieces import pieces_of
from fgrad.codegen.program import ChainStep, ContractStep, KernelStep, walk
from fgrad.passes import compile_graph
from fgrad.passes.memory import liveness
from fgrad.runtime import threads
from fgrad.runtime.interpret import interpret
from fgrad.runtime.profile import profile


@pytest.fixture(autouse=True)
def shared_always():
    """Every segment that may be shared is, whatever is faster here."""
    threads.pool()
    before = threads.get_num_threads()
    threads._words[threads._ALWAYS] = 1
    yield
    threads._words[threads._ALWAYS] = 0
    threads.set_num_threads(before)


def inputs(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=s) / np.sqrt(max(s[-1], 1))).astype(np.float32) for s in shapes]


def cross_entropy(logits, labels):
    shifted = logits - fnp.max(logits, axis=1, keepdims=True)
    logs = shifted - fnp.log(fnp.sum(fnp.exp(shifted), axis=1, keepdims=True))
    hot = labels[:, None] == fnp.arange(logits.shape[1])
    return -fnp.mean(fnp.sum(fnp.where(hot, logs, 0.0), axis=1))


def lenet(x, labels, c1, b1, c2, b2, w1, v1, w2, v2):
    def stage(x, w, b):
        return lax.max_pool(fnp.maximum(lax.conv(x, w) + b[:, None, None], 0.0), (2, 2))

    x = stage(stage(x, c1, b1), c2, b2).reshape(x.shape[0], -1)
    return cross_entropy(fnp.maximum(x @ w1.T + v1, 0.0) @ w2.T + v2, labels)


def lenet_inputs(samples):
    x, *weights = inputs(
        (samples, 3, 32, 32), (6, 3, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (10, 120), (10,)
    )
    return [x, np.arange(samples) % 10, *weights]


def norm(x):
    x = x - fnp.mean(x, axis=-1, keepdims=True)
    return x / fnp.sqrt(fnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def block(x, labels, qkv, out, up, down, head):
    samples, length, width = x.shape
    heads = 2

    def split(t):
        return t.reshape(samples, length, heads, width // heads).transpose(0, 2, 1, 3)

    q, k, v = (split(t) for t in fnp.split(norm(x) @ qkv, 3, axis=2))
    scores = fgrad.special.softmax(q @ k.transpose(0, 1, 3, 2) * 0.2, axis=-1)
    x = x + (scores @ v).transpose(0, 2, 1, 3).reshape(samples, length, width) @ out
    x = x + fnp.tanh(norm(x) @ up) @ down
    return cross_entropy((x @ head).reshape(samples * length, -1), labels)


def block_inputs():
    arrays = inputs((8, 48, 64), (64, 192), (64, 64), (64, 256), (256, 64), (64, 20))
    return [arrays[0], np.arange(8 * 48) % 20, *arrays[1:]]


def weights_of(loss, first):
    """The loss and its gradients for all arguments from `first` on."""
    return lambda *args: fgrad.value_and_grad(loss, argnums=tuple(range(first, len(args))))(*args)


CASES = {
    "lenet, batch 4": (weights_of(lenet, 2), lenet_inputs(4)),
    "lenet, batch 24": (weights_of(lenet, 2), lenet_inputs(24)),
    "transformer block": (weights_of(block, 0 + 2), block_inputs()),
}


def leaves(tree):
    return [np.asarray(x) for x in fgrad.tree.leaves(tree)]


@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_any_number_of_threads_and_right(name):
    f, args = CASES[name]
    jitted = fgrad.jit(f)
    program = jitted.lower(*args).compile().program
    chains = [s for s in walk(program.body) if isinstance(s, ChainStep)]
    assert max(sum(isinstance(m, ContractStep) for m in c.body.steps) for c in chains) >= 6
    results = {}
    for count in (1, 2, 3, 8):
        threads.set_num_threads(count)
        for _ in range(3):
            found = leaves(jitted(*args))
            results.setdefault(count, found)
            for a, b in zip(results[1], found, strict=True):
                assert a.tobytes() == b.tobytes()
    for a, b in zip(leaves(f(*map(fnp.asarray, args))), results[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * max(1.0, np.abs(a).max()))


def test_lenet_as_pytorch_has_it(torch):
    f, args = CASES["lenet, batch 24"]
    threads.set_num_threads(2)
    value, gradients = fgrad.jit(f)(*args)
    x, labels, *weights = (torch.tensor(a) for a in args)
    for w in weights:
        w.requires_grad_()
    c1, b1, c2, b2, w1, v1, w2, v2 = weights
    F = torch.nn.functional
    x = F.max_pool2d(F.conv2d(x, c1, b1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, c2, b2).relu(), 2).flatten(1)
    loss = F.cross_entropy(F.linear(F.linear(x, w1, v1).relu(), w2, v2), labels)
    loss.backward()
    np.testing.assert_allclose(float(value), float(loss.detach()), rtol=1e-5)
    for ours, w in zip(gradients, weights, strict=True):
        theirs = w.grad.numpy()
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())


def adam(p, m, v, t, x, labels):
    value, g = fgrad.value_and_grad(lambda p: cross_entropy(fnp.tanh(x @ p[0]) @ p[1], labels))(p)
    m = [0.9 * a + 0.1 * b for a, b in zip(m, g)]
    v = [0.99 * a + 0.01 * b * b for a, b in zip(v, g)]
    rate, scale = 0.01 / (1 - 0.9**t), 1 / (1 - 0.99**t)
    p = [a - rate * b / (fnp.sqrt(c * scale) + 1e-6) for a, b, c in zip(p, m, v)]
    return p, m, v, t + 1, value


def test_donated_parameters_are_updated_in_place_by_chains():
    x, *p = inputs((64, 300), (300, 256), (256, 10))
    zeros = [np.zeros_like(a) for a in p]
    labels, t = np.arange(64) % 10, np.float32(1)
    jitted = fgrad.jit(adam, donate=(0, 1, 2))
    program = jitted.lower(p, zeros, zeros, t, x, labels).compile().program
    assert len(program.placed) == 6 and any(isinstance(s, ChainStep) for s in program.body.steps)
    # A parameter and its moments are updated together: nobody reads the new moments again.
    assert not {b.root for s in walk(program.body) for b in s.reads} & set(program.outputs)
    expected = [np.asarray(a) for a in p], zeros, zeros, t
    found = (*([fnp.asarray(a.copy()) for a in group] for group in (p, zeros, zeros)), t)
    threads.set_num_threads(2)
    for _ in range(3):
        *expected, loss = adam(*expected, x, labels)
        *found, value = jitted(*found, x, labels)
        np.testing.assert_allclose(float(value), float(loss), rtol=1e-5)
    for a, b in zip(leaves(expected), leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_a_chain_touches_shares_bytes_only_in_place(name):
    """Pieces are at different members at one time: bytes may only be handed on element by element."""
    f, args = CASES[name]
    program = fgrad.jit(f).lower(*args).compile().program
    for chain in program.body.steps:
        if not isinstance(chain, ChainStep):
            continue
        handed = {frozenset((w.root, r.root)) for _, w, r in chain.in_place}
        roots = {b.root for s in chain.body.steps for b in (*s.reads, *s.writes) if b.root.kind == "temp"}
        roots -= set(program.local)
        placed = sorted(((program.offsets[b], b) for b in roots), key=lambda item: item[0])
        for n, (offset, buf) in enumerate(placed):
            for later, other in placed[n + 1 :]:
                if later < offset + buf.nbytes:
                    assert offset == later and buf.nbytes == other.nbytes
                    assert _connected(buf, other, handed)


def _connected(a, b, pairs):
    """Whether bytes go from a to b through pairs that follow one another."""
    seen, pending = {a}, [a]
    while pending:
        here = pending.pop()
        following = {x for pair in pairs if here in pair for x in pair} - seen
        seen |= following
        pending.extend(following)
    return b in seen


def test_what_only_a_chain_touches_is_a_fraction_for_each_worker():
    f, args = CASES["lenet, batch 24"]
    program = fgrad.jit(f).lower(*args).compile().program
    lifetimes = liveness(program).lifetimes
    chains = [s for s in program.body.steps if isinstance(s, ChainStep)]
    assert program.local and "conv" in {e.prim.name for c in chains for e in c.eqns}
    for buf, place in program.local.items():
        (chain,) = (c for c in chains if any(buf in (*s.reads, *s.writes) for s in c.body.steps))
        assert place.fraction * chain.count == buf.nbytes and place.stride >= place.fraction
        end = program.offsets[buf] + place.fraction
        for other, theirs in program.local.items():
            if (
                buf is not other
                and theirs.chain == place.chain
                and program.offsets[buf] <= program.offsets[other] < end
            ):
                a, b = sorted((lifetimes[buf], lifetimes[other]), key=lambda life: life.start)
                handed = any({w, r} == {buf, other} for _, w, r in chain.in_place)
                assert a.end < b.start or (a.end == b.start and handed)
    assert "a fraction for each worker" in fgrad.jit(f).lower(*args).show("memory")
    whole = sum(b.nbytes for b in program.local)
    assert program.arena_bytes < whole + sum(b.nbytes for b in set(program.offsets) - set(program.local))


def test_bytes_in_place_have_one_owner_at_a_time():
    """Two operands of one member both end there: its result may take the bytes of one of them alone."""
    f, args = CASES["lenet, batch 24"]
    program = fgrad.jit(f).lower(*args).compile().program
    lifetimes = liveness(program).lifetimes
    by_offset = {}
    for buf, offset in program.offsets.items():
        by_offset.setdefault(offset, []).append(lifetimes[buf])
    for lives in by_offset.values():
        lives.sort(key=lambda life: life.start)
        assert all(a.end <= b.start for a, b in itertools.pairwise(lives))


@pytest.mark.parametrize("name", ["lenet, batch 4", "transformer block"])
def test_the_planned_program_means_the_same(name):
    """Steps may change places and sums may be split, run by run in Python: the plan itself is right."""
    if name == "transformer block":
        f = weights_of(lambda x, w, v: fnp.mean(fnp.tanh(fnp.tanh(x @ w) @ v) ** 2), 1)
        args = inputs((64, 96), (96, 160), (160, 40))
    else:
        f = weights_of(lambda x, w, b: fnp.sum(fnp.maximum(lax.conv(x, w) + b[:, None, None], 0.0)), 0)
        args = inputs((8, 4, 18, 18), (16, 4, 3, 3), (16,))
    lowered = fgrad.jit(f).lower(*args)
    program = lowered.compile().program
    arrays = [np.asarray(a) for a in args]
    planned = interpret(program, arrays)
    plain = interpret(compile_graph(lowered.graph), arrays)
    for a, b in zip(planned, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_pieces_do_not_depend_on_the_number_of_threads():
    f, args = CASES["lenet, batch 24"]
    shown = []
    for count in (1, 5):
        threads.set_num_threads(count)
        shown.append(fgrad.jit(f).lower(*args).show("kernels"))
    assert shown[0] == shown[1] and "chain of" in shown[0]


def test_profile_times_the_members_of_a_chain():
    f, args = CASES["lenet, batch 4"]
    executable = fgrad.jit(f).lower(*args).compile()
    inside = [m for s in executable.program.body.steps if isinstance(s, ChainStep) for m in s.body.steps]
    assert all(pieces_of(m) for m in inside if isinstance(m, (KernelStep, ContractStep)))
    found = profile(executable, [np.asarray(a) for a in args], repeat=1)
    assert {id(m) for m in inside} <= {id(row.step) for row in found.rows if row.seconds > 0}


def gather(x, w, rows, columns):
    h = fnp.tanh(x @ w)
    return fnp.sum(h[fnp.arange(h.shape[0]), columns] * h[rows, 0])


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_failed_check_in_a_piece_is_reported(count):
    """Whoever meets it first, it is the one that comes first in the program."""
    x, w = inputs((4096, 64), (64, 64))
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 4096, 4096), rng.integers(0, 64, 4096)
    jitted = fgrad.jit(gather)
    threads.set_num_threads(count)
    value = jitted(x, w, rows, columns)
    np.testing.assert_allclose(float(value), float(gather(x, w, rows, columns)), rtol=1e-3)
    bad_rows, bad_columns = rows.copy(), columns.copy()
    bad_rows[4000], bad_columns[5] = 5000, 64
    texts = set()
    for _ in range(3):
        for r, c in ((bad_rows, columns), (rows, bad_columns)):
            with pytest.raises(IndexError):
                jitted(x, w, r, c)
        with pytest.raises(IndexError) as error:
            jitted(x, w, bad_rows, bad_columns)
        texts.add(str(error.value))
    assert len(texts) == 1
    assert float(jitted(x, w, rows, columns)) == float(value)
