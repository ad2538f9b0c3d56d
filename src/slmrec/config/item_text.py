"""Vectors of item texts, which base models, teacher and student may read."""

from pydantic import Field

from slmrec.config.section import Section


class ItemTextConfig(Section):
    """Vectors of the item titles: hidden states of a language model, averaged over tokens and reduced by PCA."""

    source: str = "smollm2-135m"
    """Language model that reads the titles: a hub id, a local folder, a .gguf file, or `smollm2-135m`."""
    layer: int = Field(20, ge=1)
    """Number of its layers after which the hidden states are taken."""
    num_components: int = Field(128, ge=1)
    """C, the number of principal components that are kept."""
    required: bool = True
    """Stop when the items have no titles (true), or train without them (false)."""
