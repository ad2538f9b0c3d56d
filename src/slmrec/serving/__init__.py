"""HTTP server of a recommender: `slmrec serve`."""
