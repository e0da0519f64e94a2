"""Choosing plans by measurement. What is measured is made up here, so nothing depends on how fast this machine is."""

from dataclasses import replace

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad.codegen.canonical import program_text
from fgrad.codegen.contraction import conv_spec
from fgrad.codegen.planning import plan
from fgrad.codegen.program import ContractStep, walk
from fgrad.codegen.target import host
from fgrad.codegen.tuning import HEAVY_CYCLES, Job, alternatives
from fgrad.errors import FgradTypeError, FgradValueError
from fgrad.runtime import autotune
from fgrad.runtime.autotune import MOST, Trial


def layer(x, w, b):
    return fnp.maximum(x @ w + b, 0)


def arguments(rows=64, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in ((rows, 784), (784, 128), (128,))]


def expected(x, w, b):
    return np.maximum(x.astype(np.float64) @ w + b, 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FGRAD_CACHE", "1")
    monkeypatch.delenv("FGRAD_AUTOTUNE", raising=False)
    monkeypatch.setattr(autotune, "_known", {})
    return tmp_path


def new_process(monkeypatch):
    monkeypatch.setattr(autotune, "_known", {})


def forbidden(job, plans):
    raise AssertionError("measured although nothing is to be measured")


class Last:
    """A made-up measurement that the last plan wins."""

    def __init__(self, monkeypatch):
        self.asked = []
        monkeypatch.setattr(autotune, "fastest", self)

    def __call__(self, job, plans):
        self.asked.append((job, plans))
        return len(plans) - 1


def plans_of(lowered):
    steps = [s for s in walk(lowered.program.body) if isinstance(s, ContractStep)]
    return [s.meta["pieces"].plan if "pieces" in s.meta else s.meta["plan"] for s in steps]


def recipes(lowered):
    return [p.recipe for p in plans_of(lowered)]


# ------------------------------------------------------------------------------------------------ the switch


def test_off_by_default(folder, monkeypatch):
    monkeypatch.setattr(autotune, "fastest", forbidden)
    args = arguments()
    np.testing.assert_allclose(fgrad.jit(layer)(*args), expected(*args), rtol=1e-4, atol=1e-4)
    monkeypatch.setenv("FGRAD_AUTOTUNE", "1")
    fgrad.jit(layer, autotune=False)(*args)


def test_the_variable_turns_it_on(folder, monkeypatch):
    last = Last(monkeypatch)
    monkeypatch.setenv("FGRAD_AUTOTUNE", "1")
    fgrad.jit(layer)(*arguments())
    assert len(last.asked) == 1


def test_bad_values(folder, monkeypatch):
    with pytest.raises(FgradTypeError, match="autotune is str 'yes'"):
        fgrad.jit(layer, autotune="yes")
    monkeypatch.setenv("FGRAD_AUTOTUNE", "perhaps")
    with pytest.raises(FgradValueError, match="FGRAD_AUTOTUNE is 'perhaps'"):
        fgrad.jit(layer)(*arguments())
    with pytest.raises(FgradValueError, match="FGRAD_AUTOTUNE is 'perhaps'"):
        fgrad.jit(layer).lower(*arguments())


def test_light_work_is_not_measured(folder, monkeypatch):
    monkeypatch.setattr(autotune, "fastest", forbidden)
    x = np.eye(8, dtype=np.float32)
    np.testing.assert_array_equal(fgrad.jit(fnp.matmul, autotune=True)(x, x), x)


# ------------------------------------------------------------------------------------------------ the choice


def test_the_winner_is_used(folder, monkeypatch):
    last = Last(monkeypatch)
    args = arguments()
    tuned = fgrad.jit(layer, autotune=True)
    np.testing.assert_allclose(tuned(*args), expected(*args), rtol=1e-4, atol=1e-4)
    ((job, plans),) = last.asked
    assert plans[0] is job.plan and job.cycles >= HEAVY_CYCLES
    # The disk cache has it by now: looking at the program measures nothing, and shows what runs.
    assert recipes(tuned.lower(*args)) == [plans[-1].recipe] != [job.plan.recipe]
    assert len(last.asked) == 1
    assert recipes(fgrad.jit(layer).lower(*args)) == [job.plan.recipe]


def test_programs_with_other_plans_are_other_programs(folder, monkeypatch):
    Last(monkeypatch)
    args = arguments()
    texts = [program_text(fgrad.jit(layer, autotune=on).lower(*args).program) for on in (False, True)]
    assert texts[0] != texts[1]
    monkeypatch.setattr(autotune, "fastest", lambda job, plans: 0)
    args = arguments(rows=72)
    texts = [program_text(fgrad.jit(layer, autotune=on).lower(*args).program) for on in (False, True)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("measured", [True, False])
def test_pieces_and_chains(folder, monkeypatch, measured):
    """A training step that threads share: the same gradients up to rounding, and the same bits for any number of threads."""
    if not measured:
        Last(monkeypatch)
    rng = np.random.default_rng(0)
    params = [(rng.standard_normal(s) * 0.1).astype(np.float32) for s in ((16, 4, 3, 3), (16 * 81, 10))]
    x, y = rng.standard_normal((16, 4, 20, 20)).astype(np.float32), rng.integers(0, 10, 16)

    def loss(params, x, y):
        h = fgrad.lax.conv(x, params[0], padding="VALID")
        logits = fgrad.lax.max_pool(fnp.maximum(h, 0), 2).reshape(16, -1) @ params[1]
        return fnp.mean(fnp.logaddexp(0.0, logits) - logits * fnp.eye(10, dtype=fnp.float32)[y])

    f = fgrad.value_and_grad(loss)
    want = fgrad.jit(f)(params, x, y)
    lowered = fgrad.jit(f, autotune=True).lower(params, x, y)
    assert any("pieces" in s.meta for s in walk(lowered.program.body) if isinstance(s, ContractStep))
    if not measured:
        assert recipes(lowered) != recipes(fgrad.jit(f).lower(params, x, y))
    before = fgrad.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            fgrad.set_num_threads(threads)
            value, grads = fgrad.jit(f, autotune=True)(params, x, y)
            results.append([np.asarray(a) for a in (value, *grads)])
    finally:
        fgrad.set_num_threads(before)
    for one, two, plain in zip(*results, [want[0], *want[1]], strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, plain, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what is kept


def choices(folder):
    return [p for p in folder.glob("*.fgrad") if b'{"plan": ' in p.read_bytes()]


def test_a_later_process_measures_nothing(folder, monkeypatch):
    Last(monkeypatch)
    args = arguments()
    chosen = recipes(fgrad.jit(layer, autotune=True).lower(*args))
    assert len(choices(folder)) == 1
    new_process(monkeypatch)
    monkeypatch.setattr(autotune, "fastest", forbidden)
    assert recipes(fgrad.jit(layer, autotune=True).lower(*args)) == chosen


def test_a_damaged_choice_is_made_again(folder, monkeypatch):
    last = Last(monkeypatch)
    args = arguments()
    chosen = recipes(fgrad.jit(layer, autotune=True).lower(*args))
    (path,) = choices(folder)
    path.write_bytes(path.read_bytes()[:-3])
    new_process(monkeypatch)
    with pytest.warns(UserWarning, match="damaged"):
        assert recipes(fgrad.jit(layer, autotune=True).lower(*args)) == chosen
    assert len(last.asked) == 2 and len(choices(folder)) == 1


@pytest.mark.parametrize("meta", [{"plan": "of another age"}, {"plan": 3}, {}])
def test_a_choice_that_means_nothing_is_made_again(folder, monkeypatch, meta):
    last = Last(monkeypatch)
    args = arguments()
    chosen = recipes(fgrad.jit(layer, autotune=True).lower(*args))
    (path,) = choices(folder)
    assert autotune.cache.store(path.stem, meta, b"")
    new_process(monkeypatch)
    assert recipes(fgrad.jit(layer, autotune=True).lower(*args)) == chosen
    assert len(last.asked) == 2


def test_without_a_disk_cache_a_process_remembers(folder, monkeypatch):
    last = Last(monkeypatch)
    monkeypatch.setenv("FGRAD_CACHE", "0")
    for _ in range(2):
        fgrad.jit(layer, autotune=True).lower(*arguments()).program
    assert len(last.asked) == 1 and not list(folder.iterdir())


# ------------------------------------------------------------------------------------------------ the measurement

CONV = conv_spec((4, 32, 20, 20), (32, 32, 3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1, np.float32)


def conv_job():
    chosen = plan(CONV, host())
    image, kernel = 4 * 32 * 20 * 20, 32 * 32 * 9
    arrays = tuple((np.dtype(np.float32), n) for n in (image, kernel, image))
    return Job(CONV, None, chosen, arrays, chosen.cycles)


def test_alternatives_differ_and_agree():
    job = conv_job()
    plans = alternatives(CONV, None, host(), job.plan, MOST)
    assert plans[0] is job.plan
    assert 2 <= len(plans) <= MOST and len({p.recipe for p in plans}) == len(plans)
    trial = Trial(job, plans)
    results = []
    for n in range(len(plans)):
        trial.arrays[0][:] = np.nan
        trial.code.call(trial.addresses[0], n)
        results.append(trial.arrays[0].copy())
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-4)
    assert set(trial.measure(range(len(plans)))) >= {0}


def test_winograds_algorithm_has_to_be_allowed():
    target = host()
    if not target.fma:
        pytest.skip("Winograd's algorithm needs fused multiply-adds")
    job = conv_job()
    paths = {p.path for p in alternatives(CONV, None, target, job.plan, MOST)}
    assert "winograd" in paths and len(paths) > 1
    direct = replace(target, winograd=False)
    chosen = plan(CONV, direct)
    assert "winograd" not in {p.path for p in alternatives(CONV, None, direct, chosen, MOST)}


@pytest.mark.parametrize(
    ("paths", "times", "winner"),
    [
        (("outer", "outer"), (1.0, 0.98), 0),  # within the noise
        (("outer", "outer", "inner"), (1.0, 0.9, 0.8), 2),
        (("outer", "winograd"), (1.0, 0.85), 0),  # not worth its rounding
        (("outer", "winograd"), (1.0, 0.7), 1),
        (("winograd", "outer"), (1.0, 1.1), 1),
        (("winograd", "outer"), (1.0, 1.24), 0),
    ],
)
def test_what_a_winner_must_show(monkeypatch, paths, times, winner):
    class Plan:
        def __init__(self, path):
            self.path = path

    class Fake:
        def __init__(self, job, plans):
            pass

        def measure(self, numbers):
            return {n: times[n] for n in numbers}

    monkeypatch.setattr(autotune, "Trial", Fake)
    assert autotune.fastest(None, [Plan(p) for p in paths]) == winner


def test_luck_in_the_first_round_is_not_enough(monkeypatch):
    class Plan:
        path = "outer"

    class Fake:
        def __init__(self, job, plans):
            self.times = iter([{0: 1.0, 1: 0.5, 2: 0.9}, {0: 1.0, 1: 1.0}])

        def measure(self, numbers):
            return next(self.times)

    monkeypatch.setattr(autotune, "Trial", Fake)
    assert autotune.fastest(None, [Plan(), Plan(), Plan()]) == 0
