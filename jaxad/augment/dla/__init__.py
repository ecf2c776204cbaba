"""The views and the dynamic local augmentation of DLA."""
