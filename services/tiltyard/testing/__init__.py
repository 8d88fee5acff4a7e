"""Tiltyard's testing."""
