"""The REST control plane (part of a later release)."""
