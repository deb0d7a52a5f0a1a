"""Our speed against fair alternatives, in one run, as ratios."""
