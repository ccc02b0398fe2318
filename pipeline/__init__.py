"""Metashard: distributed meta-training of few-shot vision models."""
