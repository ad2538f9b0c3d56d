"""Public data sets: registry, download, unpacking."""
