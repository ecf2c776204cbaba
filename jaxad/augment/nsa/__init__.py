"""The synthetic anomalies of NSA (Schlüter et al. 2022), on the device with jnp and on the host with OpenCV."""
