"""Operations rewritten for XLA's CPU backend, where its own form is slow; values are the same to rounding."""
