"""Fault injection: every outcome is counted, and none may be silent.

`python -m tests.faults.campaign` (make faults) runs all of them.

Each module is one family of faults and gives rows: `row.Row`. A further kind of fault is a further
row in `campaign.ROWS`, a further kind of folder a further line in `damage.FOLDERS`."""
