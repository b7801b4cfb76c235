"""Stage `score`: scores the anchors and selects those that are trained on."""
