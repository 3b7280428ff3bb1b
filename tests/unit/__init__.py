"""Tests that need nothing but Python and the built extension."""
