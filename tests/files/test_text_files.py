"""Text and JSON that people wrote, on whatever system, is the text they see; or it is refused by line and byte."""

import pytest

from tajax import text_files
from tajax.models.files import read_json
from tajax.report import runs
from tajax.workflows.workdir import kept_config

TEXT = "Möwe\r\nKrähe\nπ\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_is_read_without_its_byte_order_mark(tmp_path, encoding):
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    (tmp_path / "names.txt").write_bytes((mark + TEXT).encode(encoding))
    assert text_files.read(tmp_path / "names.txt") == "Möwe\nKrähe\nπ\n"


@pytest.mark.parametrize(
    "content, place",
    [
        ("owl\nMöwe\n".encode("latin-1"), "line 2: byte 0xf6 after 'M' is not UTF-8 text"),
        ("owl\n".encode("utf-16-le"), "line 1: byte 0x00 after 'o' is not UTF-8 text"),
        ("owl\n".encode("utf-32"), "line 1: byte 0x"),
        ("owl\nwren".encode("utf-16") + b"\n", "line 2: byte 0x0a after 'wren'"),
    ],
)
def test_other_text_is_refused_by_line_and_byte(tmp_path, content, place):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"names.txt, {place}.*iconv -f LATIN1 -t UTF-8 names.txt"):
        text_files.read(tmp_path / "names.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_configs_that_an_editor_saved_again_are_the_same(tmp_path, encoding):
    (tmp_path / "config.json").write_bytes('{"model": "Möwe"}'.encode(encoding))
    (tmp_path / "results.jsonl").write_text('{"stage": "run", "config_hash": "c"}\n')
    (run,) = runs.read(tmp_path)
    assert read_json(tmp_path / "config.json") == kept_config(tmp_path) == run.config == {"model": "Möwe"}


def test_configs_in_another_encoding_are_refused_by_their_place(tmp_path):
    (tmp_path / "config.json").write_bytes('{\n"model": "Möwe"}'.encode("latin-1"))
    for read in (read_json, lambda path: kept_config(path.parent)):
        with pytest.raises(ValueError, match="config.json, line 2: byte 0xf6 after"):
            read(tmp_path / "config.json")
