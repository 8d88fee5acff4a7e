"""Tiltyard: contests between machine-learning models that serve live traffic."""
