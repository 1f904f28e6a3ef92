"""Which operators are ONNX's own."""

from typing import Final

STANDARD_DOMAINS: Final = (None, "", "ai.onnx")
"""Names of the domain of ONNX's own operators; the graph library has None for the usual one."""
