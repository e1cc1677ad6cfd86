"""Graph of the text part of the Gemma 3 architecture."""

from __future__ import annotations

import math

from dllama_gpu.graph.graph import Activation, RmsNorm
from dllama_gpu.graph.qwen3 import Qwen3Builder
from dllama_gpu.graph.rope import plain_frequencies


class Gemma3Builder(Qwen3Builder):
    """Head norms as Qwen 3; norms behind attention and feed-forward part as well; GeGLU; scaled embeddings; layers with
    a window rotate by angles of their own. Source: "Gemma 3 Technical Report" (2025).
    """

    activation = Activation.GELU_TANH

    def embedding_scale(self) -> float:
        """sqrt(dim), which the reference rounds to bfloat16 only where it computes in that."""
        return math.sqrt(self.spec.dim)

    def rotations(self) -> None:
        """Angles of layers that see everything, and of those with a window."""
        super().rotations()
        theta = self.spec.local_rope_theta
        if theta:
            self.rotation("local_angles", plain_frequencies(theta, self.spec.head_dim))

    def angles(self, layer: int) -> str | None:
        """By whether the layer has a window."""
        return "local_angles" if self.spec.window(layer) and self.spec.local_rope_theta else "angles"

    def finish_block(self, post_norm: str, contributes: bool) -> None:
        """Norms the sum before it is added."""
        super().finish_block(post_norm, contributes)
        out = self.buffer("post_normed", self.spec.dim)
        self.steps.append(RmsNorm("delta", None, self.weight(post_norm), out, self.spec.norm_epsilon))
        self.added = out
