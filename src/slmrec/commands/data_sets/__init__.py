"""Work of `slmrec data` and `slmrec drift` on data sets."""
