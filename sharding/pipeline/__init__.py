"""Layers over devices in stages: schedules as data, their cost, and how layers are dealt out."""
