"""Proof that the two backends are one model. The only place that knows both."""
