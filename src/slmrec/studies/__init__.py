"""Studies of models: ablations, comparisons and the effect of depth."""
