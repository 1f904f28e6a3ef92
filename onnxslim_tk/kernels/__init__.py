"""Numerical methods: arrays in, arrays out, no knowledge of models."""
