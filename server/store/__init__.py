"""Adapter versions on disk: immutable, content-addressed, whole or absent."""
