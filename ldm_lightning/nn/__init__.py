"""Layers and frozen networks shared by several parts."""
