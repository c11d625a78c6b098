"""Pure functions on arrays: what can be measured of a motion."""
