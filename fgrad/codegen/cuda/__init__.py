"""Kernels for NVIDIA GPUs, as readable `numba.cuda` source made from the loop nests and contractions that the CPU uses."""
