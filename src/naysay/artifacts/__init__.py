"""The only layer that opens files of a run: atomic writes, digests, manifests, the reference cache."""
