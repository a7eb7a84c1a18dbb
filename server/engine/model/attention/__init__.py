"""Attention over two segments of blocks, one interface and its backends."""
