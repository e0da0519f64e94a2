"""PTX to machine code, and machine code on disk. Neither needs a driver or a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from fgrad.codegen.cuda.launch import CudaKernel, Param
from fgrad.errors import FgradError
from fgrad.runtime.cuda import cubins
from fgrad.runtime.cuda.linker import link

pytest.importorskip("numba_cuda", reason="numba-cuda compiles kernels, and is not installed")
pytest.importorskip(
    "cuda.bindings.nvjitlink", reason="NVIDIA's linker comes with numba-cuda, which is not installed"
)

PTX = """.version 7.8
.target sm_75
.address_size 64
.visible .entry k(.param .u64 p) {
    .reg .b64 %rd<3>; .reg .b32 %r<3>; .shared .align 4 .b8 room[1024];
    ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; st.shared.u32 [room], %r1; st.global.u32 [%rd1], %r1; ret;
}
"""


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_what_a_kernel_takes(capability):
    found = link(PTX, capability)
    assert found.cubin.startswith(b"\x7fELF") and 0 < found.registers < 32
    assert (found.spills, found.stack, found.shared) == (0, 0, 1024)


def test_what_the_linker_says_is_in_the_error():
    with pytest.raises(FgradError, match=r"the CUDA linker refused a kernel(?s:.)*nonsense"):
        link(PTX.replace("ret;", "nonsense;"), (9, 0))
    with pytest.raises(
        FgradError, match=r"does not know compute capability 99\.0(?s:.)*pip install -U 'fgrad\[cuda\]'"
    ):
        link(PTX, (99, 0))


def kernel(name: str = "double", factor: int = 2) -> CudaKernel:
    source = f"""@cuda.jit
def {name}(y, x):
    i = cuda.grid(1)  # a note
    if i < 8:
        y[i] = x[i] * float32({factor}.0)
"""
    f32 = np.dtype("float32")
    return CudaKernel(name, source, (Param("y", f32, 8, "out"), Param("x", f32, 8)), (1, 1, 1), (32, 1, 1))


def test_machine_code_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("FGRAD_CACHE", raising=False)
    first = cubins.cubin_of(kernel(), (9, 0))
    assert first.code.startswith(b"\x7fELF") and first.entry.encode() in first.code
    monkeypatch.setattr(cubins, "compile_ptx", lambda *_: pytest.fail("compiled again"))
    assert cubins.cubin_of(kernel(), (9, 0)) == first
    assert cubins.cubin_of(kernel("another_name"), (9, 0)) == first  # the entry is called as it was
    assert len({cubins.key_of(kernel(factor=f), c) for f in (2, 3) for c in ((9, 0), (7, 5))}) == 4


def test_the_linker_itself_is_asked_where_no_package_says_its_version(monkeypatch):
    def version(name: str) -> str:
        if "nvjitlink" in name:
            raise cubins.importlib.metadata.PackageNotFoundError(name)
        return "1"

    cubins._environment.cache_clear()
    usual = cubins._environment()
    try:
        keys = []
        for version_of_library in ((13, 0), (13, 1)):
            cubins._environment.cache_clear()
            monkeypatch.setattr(cubins.importlib.metadata, "version", version)
            monkeypatch.setattr("cuda.bindings.nvjitlink.version", lambda v=version_of_library: v)
            keys.append(cubins._environment())
    finally:
        cubins._environment.cache_clear()
    assert len({usual, *keys}) == 3
