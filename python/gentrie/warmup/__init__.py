"""Compiles the kernels that a catalog will need, before the first request. Needs torch and Triton."""

from gentrie._optional import require

require("torch", extra="hf")

from gentrie.warmup._compile import CompiledKernel, warmup  # noqa: E402

__all__ = ["CompiledKernel", "warmup"]
