"""How files of tables are called, and by which first bytes a file is seen to be none of text."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""What stands between cells, by the file's ending, unless the header says otherwise."""

JSON = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
"""What spreadsheets save as their own; not read."""

TABLES = (*DELIMITERS, *JSON, PARQUET)
"""What `gitllm m3it from-csv` reads."""

_SIGNATURES = {
    b"PK\x03\x04": "a zip file, as spreadsheets (.xlsx, .ods) are: save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old spreadsheet (.xls) or document: save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "compressed (gzip): unpack it",
    b"PAR1": "a parquet file: let its name end in .parquet",
    b"%PDF-": "a PDF",
}
LONGEST_SIGNATURE = max(map(len, _SIGNATURES))


def kind_by_bytes(begin: bytes) -> str | None:
    """Say what a file is whose first bytes are those of no text, and what to do; None: it may be text."""
    return next((kind for mark, kind in _SIGNATURES.items() if begin.startswith(mark)), None)
