"""Figures: the only home of matplotlib, which is loaded when something is drawn."""
