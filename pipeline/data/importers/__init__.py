"""Readers of the layouts in which labelled images are found."""
