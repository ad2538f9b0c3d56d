"""Recommendations over HTTP: `slmrec serve`."""
