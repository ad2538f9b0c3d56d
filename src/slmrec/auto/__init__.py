"""What a run would do and take, estimated before it starts."""
