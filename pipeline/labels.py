"""What numbers in labels mean, for whoever writes, reads, learns from or draws them."""

IGNORED = 255
"""In a mask: a pixel that nobody looks at, since it is not known (or not wanted) what it shows."""
