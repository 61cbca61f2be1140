"""A checkpoint on disk: tensor files, index, manifest, state. Needs no engine."""
