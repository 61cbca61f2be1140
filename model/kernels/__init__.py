"""Triton kernels for what torch does on a GPU in many passes; each equals a path of torch operations beside its caller.

Import modules of kernels by ``available.kernels``, where ``usable``: Triton comes with torch for CUDA alone.
"""
