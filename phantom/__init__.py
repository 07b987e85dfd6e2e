"""Synthetic patients: seed -> CT scan, label map, findings and report. Imports nothing of training or evaluation."""
