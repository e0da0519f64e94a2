"""What generated kernels may count on: the sizes of a GPU, or of the small one that the simulator plays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaTarget:
    """capability       compute capability (major, minor).
    multiprocessors  how many blocks run at once, at the least.
    threads          of a block of an element-wise or reducing kernel; a power of two.
    warp             threads that exchange values by shuffles; a power of two, at most `threads`.
    simulated        sizes are those of Numba's simulator, where every thread is one of Python's.
    """

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    threads: int = 256
    warp: int = 32
    shared_bytes: int = 48 << 10  # of a block, without asking for more
    simulated: bool = False

    @property
    def key(self) -> str:
        """Names the target in keys of the disk cache."""
        major, minor = self.capability
        return f"sm_{major}{minor} {self.multiprocessors} {self.threads} {self.warp} {self.simulated}"


HOPPER = CudaTarget()
TURING = CudaTarget((7, 5), 40)
SIMULATED = CudaTarget((0, 0), multiprocessors=2, threads=4, warp=2, simulated=True)
