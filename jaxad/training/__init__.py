"""The training loop, its step, its log, and the score on synthetic defects while it runs."""
