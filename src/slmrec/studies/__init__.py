"""Studies over runs: ablations, comparisons, depth."""
