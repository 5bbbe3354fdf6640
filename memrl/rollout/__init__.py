"""Sampling episodes."""
