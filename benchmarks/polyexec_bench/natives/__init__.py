"""Engines without polyexec, each driven as its own users would."""
