"""Shared by all tests; its presence makes this folder's modules importable (`generated_films`, `command_lines`)."""

import os
import secrets

# Ray's client reads these once a process, and a test process holds several Rays: all of them share one token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
