"""Updates of a run: new events and items join its data, and the shipped model learns from them."""
