"""Explanations of labels: asked of a language model, kept, and made safe to learn from."""
