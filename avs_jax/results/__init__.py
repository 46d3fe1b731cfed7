"""From a model's outputs to scores, tables, statistics and figures."""
