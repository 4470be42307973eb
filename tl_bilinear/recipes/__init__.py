"""Recipes: how what the package bundles is made, where that takes several rooms."""
