"""Few-shot regression on sines and lines (Section 4.1): tasks, their exact posterior, and measures of predictions.

Symbols, here and in the modules below: `B` tasks, `K` shots (noisy points that are given), `Q` queries, `S` samples of
functions, `M` nodes of a quadrature. Arrays are NumPy's, in float64.
"""
