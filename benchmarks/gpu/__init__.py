"""The check on a GPU, `make gpu`: ops, reducers, mounts, speed and whole steps, within eight minutes.

It needs an NVIDIA GPU, nvcc, Python 3.11 to 3.13, torch 2.10 or later, numpy, scipy, pytest and hypothesis.
`make gpu-rehearsal` runs the same code with small inputs on a CPU.
"""
