"""HTTP only: parse, authorise, call one service method, format."""
