"""Training: losses, the trainer, cached teacher outputs."""
