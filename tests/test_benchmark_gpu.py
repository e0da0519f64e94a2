"""`benchmarks/gpu.py` without a GPU: its smallest run in Numba's simulator, its tables, and what it says where there is no driver."""

import ctypes
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"

needs_numba_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None,
    reason="the simulator is part of numba-cuda, which is not installed",
)


def run(*arguments, simulated):
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment |= {"NUMBA_ENABLE_CUDASIM": "1"} if simulated else {}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("report_gpu")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@needs_numba_cuda
def test_the_smallest_run(tmp_path):
    file = tmp_path / "cuda.json"
    done = run("--tiny", "--json", str(file), simulated=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["simulated"] and found["machine"]["versions"]["fgrad"]
    replayed, launched = found["steps"]
    assert (replayed["way"], launched["way"]) == ("fgrad", "fgrad launches")
    assert replayed["replays"] > 0 and launched["replays"] == 0
    assert launched["loss_rel_diff"] == 0 and launched["grad_rel_diff"] == 0
    (product,) = found["products"]
    assert product["error"] < 1e-6 and product["flop"] == 2 * 16**3 and product["device_us"] > 0
    assert {r["ceiling"] for r in found["ceilings"]} == {"copy", "multiply_adds"}
    assert "| W5 | MLP 6-8-5, SGD, batch 1 |" in done.stdout and "| 16^3 | float32 |" in done.stdout


@needs_numba_cuda
def test_some_samples():
    done = run("--check", "add,sort,nextafter", simulated=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 primitives" in done.stdout and "0 fail." in done.stdout
    assert "Without a kernel: add (complex" in done.stdout and "sort (" in done.stdout


@needs_numba_cuda
def test_without_a_driver():
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        done = run(simulated=False)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.count("\n") == 1 and "no NVIDIA driver here" in done.stderr, done.stderr
    else:
        pytest.skip("there is a driver here")


@needs_numba_cuda
def test_the_simulator_is_not_measured():
    done = run(simulated=True)
    assert done.returncode == 2 and "only --tiny and --check" in done.stderr


@pytest.mark.parametrize("option", ["--only", "--workloads", "--check"])
def test_unknown_names(option):
    done = run(option, "nothing", simulated=True)
    assert done.returncode == 2 and "nothing" in done.stderr.splitlines()[-1]


MACHINE = {"gpu": "A GPU", "python": "3.12", "versions": {"fgrad": "1"}}


def step(way, us, **more):
    row = {"workload": "W1", "what": "a net", "way": way, "wall_us": us + 1, "loss": 1.0}
    return row | {"loss_rel_diff": 1e-7, "grad_rel_diff": 1e-6} | more


def test_steps_are_judged(report):
    rows = [
        step("fgrad", 10.0, device_us=10.0),
        step("pytorch eager", 60.0, device_us=60.0),
        step("torch.compile loss", 50.0, device_us=50.0),
        step("torch.compile step", 30.0, device_us=30.0),
        step("jax jit", 11.0),
    ]
    text = report.tables({"machine": MACHINE, "steps": rows})
    cells = [c.strip() for c in text.splitlines()[-1].split("|")][1:-1]
    assert cells[2] == "10.00" and cells[4] == "60.00"
    assert cells[6] == "30.00", "the faster of the compiled forms"
    assert cells[3] == "–", "a way that was not measured"
    assert "6.00" in cells and "1.09" in cells, "JAX by the host's clock: 12 over 11"
    assert "**no**: 1.09 of 1.5 (JAX)" in cells


def test_ceilings_judge_the_rest(report):
    copies = [
        {"ceiling": "copy", "how": how, "bytes": b, "gbs": gbs}
        for how, b, gbs in (("kernel", 100, 5.0), ("driver", 100, 10.0), ("driver", 1000, 3.0))
    ]
    products = [
        {"case": "8^3", "precision": p, "library": k, "tflops": v, "error": 0.0}
        for p, k, v in (("float32", "fgrad", 6.0), ("tf32", "fgrad", 40.0), ("tf32", "torch", 100.0))
    ]
    steps = [step("fgrad", 1.0, workload="W7", device_us=1.0, bytes=110, gbs=9.0)]
    peak = {"ceiling": "multiply_adds", "tflops": 8.0}
    text = report.tables(
        {"machine": MACHINE, "ceilings": [*copies, peak], "products": products, "steps": steps}
    )
    lines = text.splitlines()
    assert any(n.startswith("| 8^3 | float32 | 6.00") and "| 75 | yes |" in n for n in lines), text
    assert any(n.startswith("| 8^3 | tf32 | 40.00") and "**no**: 0.40 of 0.5" in n for n in lines), text
    assert "| W7 | 9.00 | 10.00 | yes |" in lines, "against the fastest copy of its size"
    assert any("fastest product, tf32 (torch, 8^3)" in n for n in lines)


def test_the_form_for_cuda_graphs_computes_the_same(torch, monkeypatch):
    """PyTorch's steps with parameters that stay where they are, here without compiling."""
    monkeypatch.setattr(torch, "compile", lambda f, mode=None: f)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        workloads = importlib.import_module("workloads")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    w = workloads.WORKLOADS["W4"]
    plain, _ = workloads.torch_step(w)
    graphs, _ = workloads.torch_step(w, compiled=True, mode="reduce-overhead")
    whole, _ = workloads.torch_whole_step(w, mode="reduce-overhead")
    wanted = [float(plain()) for _ in range(3)]
    assert wanted[2] < wanted[0]
    assert [float(graphs()) for _ in range(3)] == wanted
    assert [float(whole()) for _ in range(3)] == pytest.approx(wanted, rel=1e-4)


def test_no_figures_are_said_to_be_missing(report):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = readme.split("<!-- cuda: written by benchmarks/report.py -->")[1].split("<!-- end of cuda -->")[0]
    measured = (ROOT / "benchmarks" / "results" / "cuda.json").exists()
    assert (report.NOTHING in told) != measured
