"""`Sequential`: layers and functions, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fgrad.errors import FgradTypeError, describe, message
from fgrad_nn import show
from fgrad_nn.module import Bound, Module


class Sequential(Module):
    """Layers (and functions of one array, such as `nn.relu`) applied in order.

        net = nn.Sequential(nn.Linear(784, 128), nn.relu, nn.Linear(128, 10))
        net = nn.Sequential(fc1=nn.Linear(784, 128), act=nn.relu, fc2=nn.Linear(128, 10))

    Params are named as in PyTorch by position ("0", "2"), or by the names given.
    """

    def __init__(self, *layers: Any, **named: Any):
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named, layers = {**layers[0], **named}, ()
        if layers and named:
            raise FgradTypeError(
                message("Sequential", "layers by position and by name are mixed", "use one of both")
            )
        steps = tuple(named.items()) if named else tuple((str(i), layer) for i, layer in enumerate(layers))
        for name, step in steps:
            if not callable(step) or isinstance(step, type):
                fix = "pass layers or functions"
                if isinstance(step, type):
                    fix = f"make it: {step.__name__}(...)"
                elif isinstance(step, (list, tuple)):
                    fix = "unpack it: Sequential(*layers)"
                got = f"the class {step.__name__}" if isinstance(step, type) else describe(step)
                problem = f"step {name} is {got}, neither a layer nor a function"
                raise FgradTypeError(message("Sequential", problem, fix))
        self.steps: tuple[tuple[str, Any], ...] = steps

    def named_children(self) -> Iterator[tuple[str, Any]]:
        return ((name, step) for name, step in self.steps if show.is_layer(step))

    def rows(self) -> Iterator[tuple[str, Any]]:
        """For printing: the functions too."""
        return iter(self.steps)

    def forward(self, p: Bound, x: Any) -> Any:
        for name, step in self.steps:
            x = step(p[name], x) if show.is_layer(step) else step(x)
        return x

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int | str) -> Callable[..., Any]:
        return dict(self.steps)[i] if isinstance(i, str) else self.steps[i][1]
