"""Pure functions on arrays that several parts of the model share."""
