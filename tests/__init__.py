"""The tests, by what they need; a package, so that the type checker and helpers see them."""
