"""A learner that is taught and asked over HTTP, and a page in front of it."""
