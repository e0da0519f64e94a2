"""Running programs on an NVIDIA GPU, or in Numba's simulator of one."""
