"""Putting a guest kernel into memory and a vCPU at its door."""
