"""Loaded first where processes are forked from: `hush`, before anything else is loaded there."""

from greentrainer.records.quiet import hush

hush()
