"""Study of language: whether text, pretraining and distillation pay on a log, by controls, slices and cold items."""
