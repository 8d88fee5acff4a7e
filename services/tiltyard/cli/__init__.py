"""The ``tiltyard`` command."""
