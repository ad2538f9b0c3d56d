"""Rules of requests and of model folders: what may be recommended, what is boosted, and what is capped."""
