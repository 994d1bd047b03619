"""Predicts the time of a training step at other world sizes and links, from a calibration."""
