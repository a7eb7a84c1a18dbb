"""The load generator, a process of its own. Standard library and uvloop only, so it costs every server the same."""
