"""Tests of the core, without engines."""
