"""Decides what every step computes; imports no torch."""
