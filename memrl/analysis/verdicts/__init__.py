"""Verdicts on the hypotheses, one module for each group of them; `judge` asks them all."""
