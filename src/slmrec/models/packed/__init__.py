"""The engine: a batch as one packed sequence without padding."""
