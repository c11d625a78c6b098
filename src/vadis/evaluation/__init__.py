"""Evaluation: protocols, what is evaluated, reports and leaderboards. The call is `vadis.evaluate`."""
