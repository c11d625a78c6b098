"""What a file or folder is, without loading it: what `vadis info` says."""
