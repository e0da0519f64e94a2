"""Control flow and function-like equations: primitives whose parameters are graphs. Their rules derive those graphs."""
