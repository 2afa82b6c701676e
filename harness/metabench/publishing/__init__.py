"""Publishing: tables with the evidence they stand on, what is handed in, and how it's checked.

A folder of published tables (`leaderboards/`), and a bundle, which is one file for one suite, hold

    <suite>.json                     the rows: which cells, which numbers; see `published`
    <suite>.csv, <suite>.md          the same for people (folders only)
    <suite>.history.json             rows that were replaced (folders only)
    <suite>.datasheet.md             what was measured, on what data (folders only)
    <suite>.croissant.json           metadata for machines (folders only)
    evidence/cells/<key>.json        a cell's record, on what it ran, its times; see `evidence`
    evidence/cells/<key>.parquet     what it predicted, a row a query
    evidence/queries/<digest>.parquet    what was asked: the same for all cells of a protocol
    evidence/reproduced/<key>.json   that it was run again, and what came of it

`files` reads either; `folder` publishes by the rules of `merge`; `deposit` makes an archive for a
DOI. Nothing in here is executed, and nothing in it is believed.
"""
