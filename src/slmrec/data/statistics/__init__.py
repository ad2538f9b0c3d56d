"""Statistics of prepared data sets, and of the drift from one to another."""
