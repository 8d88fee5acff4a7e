"""Which versions are served: the configuration, and the life of each version."""
