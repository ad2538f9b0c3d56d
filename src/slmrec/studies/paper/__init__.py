"""Study of the paper's claims: its models with several seeds, each loss term in turn, and its other variants."""
