"""Item texts: their sources, whitening, and the learned map that adds their vectors to a model."""
