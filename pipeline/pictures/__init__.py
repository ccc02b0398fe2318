"""Draws what a run looks like: arrays in, a PNG file out. Imports no more than a bare machine with matplotlib has."""
