"""Losses: functions of outputs, targets and random draws; they know no module."""
