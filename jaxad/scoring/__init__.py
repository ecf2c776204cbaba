"""From features and maps to scores: densities, localization, the judged region, thresholds."""
