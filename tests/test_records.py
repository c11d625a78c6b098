"""JSON, JSON Lines and YAML at the border: what is read, what is refused, and how the refusal reads."""

import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from vadis.errors import MAX_MESSAGE, FileError, ModelError, VadisError, one_line
from vadis.locks import only_run
from vadis.records import MAX_DEPTH, checked, parse_json, parse_yaml, read_json, read_json_lines, read_rows, read_yaml


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Row:
    """A record for these tests."""

    name: str
    frames: int = 0
    span: tuple[float, float] = (0.0, 0.0)


def test_messages_are_one_clean_line() -> None:
    error = VadisError("bad \x1b[31mname\x1b[0m\n\tin \x1b]0;title\x07 file\u202e \x9b2J\ud800")
    assert str(error) == "bad name in file 2J"
    long = str(FileError("a" * 1000 + " do this."))
    assert len(long) == MAX_MESSAGE and long.endswith("do this.") and " … " in long
    assert one_line("grüße, 你好") == "grüße, 你好"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ("1" * 5000, "not valid JSON"),
    ],
)
def test_json_that_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        parse_json(text, "page.json", ModelError)


def test_json_that_is_read(tmp_path: Path) -> None:
    assert parse_json('{"a": ["\\ud83d\\ude00", 1e3, null]}', "x") == {"a": ["😀", 1000.0, None]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")
    assert parse_json(json.dumps([[1]] * 1000), "x")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(FileError, match="more than 4 bytes"):
        read_json(tmp_path / "x.json", max_bytes=4)


def test_json_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b\x85c"}\r\n\n{"text": "d"}'.encode())
    assert list(read_json_lines(path)) == [(1, {"text": "a\u2028b\x85c"}), (3, {"text": "d"})]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(FileError, match=r"rows\.jsonl, line 2: expected a JSON object"):
        list(read_json_lines(path))
    with pytest.raises(FileError, match="line 1: more than 4 bytes"):
        list(read_json_lines(path, max_line=4))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "given twice"),
        ("a: [" * 150 + "]" * 150, "nested too deeply"),
        ("? [1]\n: 2", "must be a word"),
        ("a: 2026-13-45", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: &a [*a]", "nested too deeply|holds itself|not valid"),
        ("\n".join(["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"] + [f"a{i}: &a{i} [{','.join([f'*a{i-1}'] * 10)}]" for i in range(1, 9)]),
         "aliases are followed"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(FileError, match=said):
        parse_yaml(text, "x.yaml")


def test_yaml_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &x {b: 1}\nc: *x\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 1}}
    (tmp_path / "x.yaml").write_text("- 1\n")
    with pytest.raises(FileError, match="expected keys and values"):
        read_yaml(tmp_path / "x.yaml")


def test_checked_names_the_field() -> None:
    assert checked(Row, {"name": "a", "frames": 3, "span": [0, 1]}, "x") == Row("a", 3, (0.0, 1.0))
    with pytest.raises(FileError, match=r"x, line 3: frames: .*integer.* \(it is '3'\)"):
        checked(Row, {"name": "a", "frames": "3"}, "x, line 3")
    with pytest.raises(FileError, match="other: unexpected"):
        checked(Row, {"name": "a", "other": 1}, "x")


def test_rows_are_read_and_checked_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a\u2028b"}\n\n{"name": "b", "span": [1, 2.5]}\n')
    assert list(read_rows(Row, path)) == [(1, Row("a\u2028b")), (3, Row("b", span=(1.0, 2.5)))]
    for bad, said in {
        '{"name": "a", "span": [NaN, 1]}': "line 4: span.0: input should be a finite number",
        '{"name": 3}': "line 4: name: .*string",
        '{"name": "\\ud800"}': "line 4: .*escape",
        '{"name": "a"': "line 4: .*JSON",
        "[" * 1000: "line 4: .*(recursion|array|JSON)",
        "{}": "line 4: name: .*required",
    }.items():
        path.write_text('{"name": "a"}\n\n\n' + bad + "\n")
        with pytest.raises(FileError, match=said):
            list(read_rows(Row, path))


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with only_run(tmp_path / "out"), ThreadPoolExecutor(1) as thread:
        for name in ("out", "link"):
            with pytest.raises(FileError, match=f"process {os.getpid()} on "):
                thread.submit(lambda name=name: only_run(tmp_path / name).__enter__()).result()
        with only_run(tmp_path / "out"), only_run(tmp_path / "other"):
            pass
        assert (tmp_path / ".out.vadis-lock").exists()
    (tmp_path / "link").unlink()
    with only_run(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_of_a_dead_process_does_not_block(tmp_path: Path) -> None:
    program = f"""
        import sys, time
        from vadis.locks import only_run
        with only_run({str(tmp_path / "out")!r}):
            print("held", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with pytest.raises(FileError, match=f"process {child.pid} "), only_run(tmp_path / "out"):
        pass
    child.kill()
    child.wait()
    assert [p.name for p in tmp_path.iterdir()] == [".out.vadis-lock"]
    with only_run(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system opens no file without following links")
def test_a_lock_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("somebody's words")
    (tmp_path / ".out.vadis-lock").symlink_to(tmp_path / "other")
    with pytest.raises(FileError, match="can't write beside"), only_run(tmp_path / "out"):
        pass
    assert (tmp_path / "other").read_text() == "somebody's words"
