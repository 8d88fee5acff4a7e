"""The compiled core of Tiltyard: the router's hot path and the load generator."""
