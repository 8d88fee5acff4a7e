"""Tiltyard's outcomes."""
