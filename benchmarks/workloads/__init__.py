"""One file for each workload: `run(bench)` measures it and returns what it found."""
