"""The proxy tasks of CutPaste (Li et al. 2021): CutPaste, Scar, Cutout and the others of its tables."""
