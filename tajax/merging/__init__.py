"""Merging methods: many task vectors, one model."""
