"""Every file of data_files.py is read right, or refused in one line that says what to do."""

from __future__ import annotations

import pytest

from tests.data_files import BEGIN, DOCUMENT, END, FILES, markdown, read

NAMES = [f"{number} {file.name} {file.odd}" for number, file in enumerate(FILES)]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_read_right_or_refused(tmp_path, file):
    outcome = read(file, tmp_path)
    assert "\n" not in outcome.line and outcome.line.startswith((file.name.rstrip("/"), "--"))
    if isinstance(file.want, str):
        assert not outcome.columns and file.want in outcome.line
    else:
        assert (outcome.columns, outcome.rows) == (file.want, file.rows), outcome.line
        assert file.says in outcome.line
        assert ": columns " in outcome.line or ": text column " in outcome.line


def test_the_table_of_the_document_is_this_one():
    assert len(FILES) >= 60
    assert DOCUMENT.read_text("utf-8").split(BEGIN)[1].split(END)[0] == markdown()
