"""The stages of a run and how they are executed."""
