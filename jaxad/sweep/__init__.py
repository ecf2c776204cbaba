"""``python -m jaxad.sweep``: many categories and seeds."""
