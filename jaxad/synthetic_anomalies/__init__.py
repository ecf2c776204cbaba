"""``python -m jaxad.synthetic_anomalies``: a detector against shapes that no training makes."""
