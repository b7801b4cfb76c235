"""Classing answers and selecting anchors."""
