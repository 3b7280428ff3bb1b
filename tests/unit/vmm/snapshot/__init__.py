"""Snapshots without a guest: files, fields, and whom they are refused."""
