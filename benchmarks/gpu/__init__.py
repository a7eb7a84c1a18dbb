"""The GPU engine against its own reference, against its predictions, and against transformers, on one card.

Needs torch, transformers, safetensors, numpy and Triton, and no network.
"""
