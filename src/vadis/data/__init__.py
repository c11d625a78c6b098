"""Corpora of motion and captions: built from files, checked, augmented, encoded."""
