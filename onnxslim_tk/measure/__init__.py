"""Measuring: samples, the runtime, what a compressed model loses and what it gains."""
