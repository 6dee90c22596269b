"""Runs on disk: config, checkpoints and their seals, calibration, versions, provenance."""
