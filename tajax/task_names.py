"""Names of tasks of texts, for configs and for the check of a data directory, where they are files: `NAME.npz`."""

from __future__ import annotations

__all__ = ["TEXT_CONTROL", "TEXT_TASKS"]

TEXT_TASKS = (
    *("ag_news", "banking77", "movie_reviews", "product_reviews"),
    *("snips", "subjectivity", "trec", "tweet_emotion"),
)
TEXT_CONTROL = "clinc150"
"""A task that edits of the others should leave alone."""
