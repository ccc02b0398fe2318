"""Labelled samples in tars: their index, the episodes drawn from them, and how these reach a learner."""
