"""Whether text, pretraining and distillation pay on a log: controls, slices and cold items."""
