"""The Hugging Face hub: whether it has a file, asked once."""

from __future__ import annotations


def ask(repo: str, file: str) -> None:
    """Ask the hub for a repository's file without fetching it: a download alone would go on asking for half a minute
    where nothing answers. Raises what the hub's library raises where it has none, or cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(repo, file))
