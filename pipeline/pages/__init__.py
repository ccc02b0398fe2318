"""Pages that tell of a run, a sweep or what several runs say together: each one self-contained HTML file."""
