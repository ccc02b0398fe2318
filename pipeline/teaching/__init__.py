"""From a checkpoint and a few labelled images to a model that knows their classes."""
