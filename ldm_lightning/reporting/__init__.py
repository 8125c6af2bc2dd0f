"""Loggers, tables and what else shows a run to people."""
