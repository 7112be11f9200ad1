"""Network parts that know nothing of shapes' families."""
