"""Drawing responses: the Sampler protocol, its backends, anchors under moral instructions, seeds."""
