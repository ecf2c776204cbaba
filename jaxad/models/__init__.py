"""Networks in Flax, and their losses."""
