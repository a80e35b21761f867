"""As the core's tests: double precision, and shapes that are not checked in what a test wants refused."""

from tests.core.conftest import wrong_on_purpose, x64

__all__ = ["wrong_on_purpose", "x64"]
