"""HTTP itself: connections, heads and bodies of requests, and errors."""
