"""The loops that several stages need: embed images, train a run, score episodes by a method."""
