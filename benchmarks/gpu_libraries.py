"""The libraries that `gpu.py` measures, each with its clock and its way to do what is measured, on the GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from workloads import Workload, fgrad_ops, functional_step, jax_ops, torch_step, torch_whole_step

Answer = dict[str, Any]


@dataclass
class Clock:
    """How one library waits for its device, and marks places in its queue."""

    wait: Callable[[Any], None]  # given the last result
    mark: Callable[[], Any] | None = None
    elapsed: Callable[[Any, Any], float] | None = None  # seconds between two marks


class Absent(Exception):
    """The library is not here, or has no GPU; the text says what to install."""


class Library:
    """What a worker asks of a library. `name` may say more than that: "torch.compile loss", "fgrad launches"."""

    clock: Clock

    def __init__(self, name: str, precision: str):
        self.name, self.precision = name, precision

    def step(self, w: Workload) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """As in `workloads`."""
        raise NotImplementedError

    def numpy(self, x: Any) -> np.ndarray:
        raise NotImplementedError

    def put(self, x: np.ndarray) -> Any:
        """On the device; in bfloat16 if that is the precision."""
        raise NotImplementedError

    def product(self, a: Any, b: Any) -> Callable[[], Any]:
        raise NotImplementedError

    def conv(self, kind: str, c: Any, x: Any, w: Any, g: Any) -> Callable[[], Any]:
        raise NotImplementedError

    def copy(self, x: Any, how: str) -> Callable[[], Any]:
        raise NotImplementedError

    def settle(self, once: Callable[[], Any]) -> Callable[[], Any]:
        """The step as it is to be timed, once its first results have been looked at."""
        return once

    def after(self) -> Answer:
        return {}


class Fgrad(Library):
    def __init__(self, name: str, precision: str):
        super().__init__(name, precision)
        import fgrad
        from fgrad.runtime.cuda.device import cuda_device

        self.fgrad = fgrad
        self.device = cuda_device("benchmarks/gpu.py")
        self.driver: Any = self.device.driver
        self.clock = Clock(lambda last: self.device.wait(), self.driver.mark, self.driver.elapsed)
        self.jitted: list[Any] = []
        self.precise = fgrad.matmul_precision(precision)  # from here on, in all of this process
        self.precise.__enter__()

    def step(self, w: Workload) -> tuple[Callable[[], Any], Callable[[], Any]]:
        o = fgrad_ops("cuda")
        compiled = {name: getattr(o, name) for name in ("jit", "jit_plain")}

        def kept(name: str) -> Callable[[Any], Any]:
            def jit(f: Any) -> Any:
                self.jitted.append(compiled[name](f))
                return self.jitted[-1]

            return jit

        for name in compiled:
            setattr(o, name, kept(name))
        return functional_step(o, w)

    def after(self) -> Answer:
        """How often a whole program was replayed as a CUDA graph so far."""
        programs = [p for f in self.jitted for p in f._programs.values()]
        return {"replays": sum(p.executable.replays for p in programs)}

    def numpy(self, x: Any) -> np.ndarray:
        return np.asarray(self.fgrad.device_get(x))

    def put(self, x: np.ndarray) -> Any:
        narrow = self.precision == "bf16" and x.dtype == np.float32
        return self.fgrad.device_put(x.astype(self.fgrad.dtypes.bfloat16) if narrow else x, "cuda")

    def product(self, a: Any, b: Any) -> Callable[[], Any]:
        multiply = self.fgrad.jit(lambda a, b: a @ b, device="cuda")
        return lambda: multiply(a, b)

    def conv(self, kind: str, c: Any, x: Any, w: Any, g: Any) -> Callable[[], Any]:
        run = self.fgrad.jit(fgrad_conv(kind, c), device="cuda")
        return lambda: run(x, w, g)

    def copy(self, x: Any, how: str) -> Callable[[], Any]:
        if how == "kernel":  # of ours: as much is read and written, and each number negated on the way
            negative = self.fgrad.jit(lambda x: -x, device="cuda")
            return lambda: negative(x)
        y = self.device.pool.allocate(x.nbytes)
        source = x.unsafe_buffer_pointer()
        return lambda: self.driver.copy(y.address, source, x.nbytes)


def fgrad_conv(kind: str, c: Any) -> Callable[..., Any]:
    """A convolution of `contraction.CONVS`, or one of its gradients, as a function of x, w and the gradient of the result."""
    import fgrad
    from fgrad import lax

    def forward(x: Any, w: Any) -> Any:
        return lax.conv(x, w, strides=c.stride, padding=c.pad, dilation=c.dilation, groups=c.groups)

    if kind == "forward":
        return lambda x, w, g: forward(x, w)
    if kind == "input gradient":
        return lambda x, w, g: fgrad.vjp(lambda x: forward(x, w), x)[1](g)[0]
    return lambda x, w, g: fgrad.vjp(lambda w: forward(x, w), w)[1](g)[0]


class Torch(Library):
    def __init__(self, name: str, precision: str):
        super().__init__(name, precision)
        import torch

        if not torch.cuda.is_available():
            raise Absent("PyTorch has no GPU here: install its CUDA build, see https://pytorch.org")
        self.torch = torch
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True  # the fastest algorithm of each convolution, by trial
        self.stream = torch.cuda.Stream()
        self.clock = Clock(lambda last: torch.cuda.synchronize(), self.mark, self.elapsed)

    def mark(self) -> Any:
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def step(self, w: Workload) -> tuple[Callable[[], Any], Callable[[], Any]]:
        mode = "reduce-overhead" if self.name.endswith("graphs") else None
        if self.name.startswith("torch.compile step"):
            return torch_whole_step(w, "cuda", mode)
        if self.name == "pytorch graph":
            once, gradients = torch_step(w, device="cuda", capturable=True)
            return self.aside(once), self.aside(gradients)
        return torch_step(w, self.name.startswith("torch.compile loss"), "cuda", mode)

    def aside(self, f: Callable[[], Any]) -> Callable[[], Any]:
        """`f` in a stream of its own, as everything must run that comes before a capture."""

        def call() -> Any:
            self.stream.wait_stream(self.torch.cuda.current_stream())
            with self.torch.cuda.stream(self.stream):
                found = f()
            self.torch.cuda.current_stream().wait_stream(self.stream)
            return found

        call.inside = f  # type: ignore[attr-defined]
        return call

    def settle(self, once: Callable[[], Any]) -> Callable[[], Any]:
        """For "pytorch graph": the eager step, captured once as a CUDA graph, which is then replayed."""
        if self.name != "pytorch graph":
            return once
        for _ in range(3):
            once()
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            value = once.inside()  # type: ignore[attr-defined]

        def replay() -> Any:
            graph.replay()
            return value

        return replay

    def numpy(self, x: Any) -> np.ndarray:
        return x.detach().float().cpu().numpy()

    def put(self, x: np.ndarray) -> Any:
        there = self.torch.from_numpy(x).to("cuda")
        return there.bfloat16() if self.precision == "bf16" else there

    def product(self, a: Any, b: Any) -> Callable[[], Any]:
        out = self.torch.empty_like(a)
        return lambda: self.torch.mm(a, b, out=out)

    def conv(self, kind: str, c: Any, x: Any, w: Any, g: Any) -> Callable[[], Any]:
        strides, pads, dilations = ([v] * 2 for v in (c.stride, c.pad, c.dilation))
        if kind == "forward":
            return lambda: self.torch.conv2d(x, w, None, strides, pads, dilations, c.groups)
        mask = [kind == "input gradient", kind == "weight gradient", False]
        arguments = (g, x, w, None, strides, pads, dilations, False, [0, 0], c.groups, mask)
        backward = self.torch.ops.aten.convolution_backward
        return lambda: backward(*arguments)[0 if mask[0] else 1]

    def copy(self, x: Any, how: str) -> Callable[[], Any]:
        y = self.torch.empty_like(x)
        return lambda: y.copy_(x)


class Nvmath(Torch):
    """cuBLASLt, planned once for each product; the arrays are PyTorch's."""

    def product(self, a: Any, b: Any) -> Callable[[], Any]:
        linalg = importlib.import_module("nvmath.linalg")
        kinds = linalg.ComputeType
        kind = kinds.COMPUTE_32F_FAST_TF32 if self.precision == "tf32" else kinds.COMPUTE_32F
        planned = linalg.advanced.Matmul(a, b, options={"compute_type": kind})
        planned.plan()
        return planned.execute


class Jax(Library):
    def __init__(self, name: str, precision: str):
        super().__init__(name, precision)
        import jax

        if jax.default_backend() != "gpu":
            raise Absent("JAX has no GPU here: pip install 'jax[cuda13]'")
        jax.config.update("jax_default_matmul_precision", "highest")
        self.clock = Clock(jax.block_until_ready)

    def step(self, w: Workload) -> tuple[Callable[[], Any], Callable[[], Any]]:
        o = jax_ops()
        o.wait = lambda x: x  # the clock waits, after many steps
        return functional_step(o, w)

    def numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x)


def library(name: str, precision: str) -> Library:
    kinds: dict[str, tuple[type[Library], str]] = {
        "fgrad": (Fgrad, ""),
        "nvmath": (Nvmath, "nvmath-python[cu13]"),
        "jax": (Jax, "jax[cuda13]"),
    }
    kind, package = kinds.get(name.split()[0], (Torch, "torch"))
    try:
        if kind is Nvmath:
            importlib.import_module("nvmath")
        return kind(name, precision)
    except ImportError:
        if kind is Fgrad:
            raise
        raise Absent(f"{name} is not installed: pip install '{package}'") from None
