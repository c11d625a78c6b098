"""What a user calls: whole roads from a prompt or a file to a motion."""
