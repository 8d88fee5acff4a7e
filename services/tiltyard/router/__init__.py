"""Tiltyard's router."""
