"""Side-by-side measurements of the runbook and its peers: `python -m benchmarks --help`."""
