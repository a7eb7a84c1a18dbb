"""Compiled kernels for the CPU: built where they run, chosen by what the processor has."""
