"""Edits of motions that need more than one line: foot-slide clean-up."""
