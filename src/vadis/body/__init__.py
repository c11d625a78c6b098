"""A mannequin for any skeleton: its surface and its picture, for files, judges and viewers alike."""
