"""Meshes of devices, what is split over them, and several processes."""
