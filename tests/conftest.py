"""Shared by all tests; its presence makes this folder's modules importable (`generated_films`, `command_lines`)."""
