"""Triton kernels of the GPU engine. Importing them needs Triton; only the backends that launch them do."""
