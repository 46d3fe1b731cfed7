"""Pure functions on arrays that several parts share."""
