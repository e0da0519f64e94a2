"""fgrad."""
