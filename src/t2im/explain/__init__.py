"""Look inside: pictures and numbers of a model, read from the live modules and the live reverse loop."""
