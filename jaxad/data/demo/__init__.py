"""The embedded demo: rendered parts with rendered defects."""
