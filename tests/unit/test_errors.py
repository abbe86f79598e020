"""The error tree: stable codes, the same class on both sides of the wire."""

from __future__ import annotations

import copy
import errno
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs import errors
from gfs.client import as_built_in
from gfs.errors import GfsError, InvariantViolated, ReplicaUnavailable, from_wire, invariant


def tree(root: type[GfsError] = GfsError) -> list[type[GfsError]]:
    """Of the file system's own; what is built on it has errors below these."""
    below = (kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__)
    return [root, *(each for child in below for each in tree(child))]


def of_class(kind: type[GfsError]) -> GfsError:
    error = kind("/x: why")
    error.request = "r-1"
    return error


EVERY_ERROR = pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in tree()]
    assert len(set(codes)) == len(codes)


def test_all_errors_are_public_and_drawn() -> None:
    for kind in tree():
        assert kind.__name__ in errors.__all__
        assert kind.__name__ in errors.__doc__


@EVERY_ERROR
def test_an_error_is_the_same_class_on_the_other_side(kind: type[GfsError]) -> None:
    error = from_wire(kind.code, "one line that says what to do")
    assert type(error) is kind
    assert str(error) == "one line that says what to do"
    assert error.args == ("one line that says what to do",)


@EVERY_ERROR
def test_an_error_knows_what_it_means_outside(kind: type[GfsError]) -> None:
    assert 400 <= kind.http_status < 600
    assert kind.exit_code in (1, 2, 3)
    assert kind.retryable == issubclass(kind, errors.Retryable)


@EVERY_ERROR
@pytest.mark.parametrize("clone", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_error_survives_a_copy(kind: type[GfsError], clone: object) -> None:
    """Into another process, say: of a multiprocessing pool that uses the client."""
    error = clone(from_wire(kind.code, "words", "server-1"))  # type: ignore[operator]
    assert type(error) is kind
    assert str(error) == "words"
    assert error.server == "server-1"  # type: ignore[attr-defined]


@given(st.text(), st.text())
def test_any_code_makes_an_error(code: str, message: str) -> None:
    error = from_wire(code, message)
    assert isinstance(error, GfsError)
    assert str(error) == message


def test_the_failed_server_is_named() -> None:
    assert ReplicaUnavailable("m", "s").server == "s"
    assert ReplicaUnavailable("m").server == ""
    assert from_wire("corrupt_replica", "m", "s").server == "s"  # type: ignore[attr-defined]


def test_errors_are_caught_by_their_builtin_names() -> None:
    for kind, builtin in [
        (errors.NotFound, FileNotFoundError),
        (errors.AlreadyExists, FileExistsError),
        (errors.DeadlineExceeded, TimeoutError),
        (errors.MasterUnavailable, ConnectionError),
        (errors.WrongClusterKey, PermissionError),
        (errors.InvalidName, ValueError),
        (errors.DiskFull, OSError),
    ]:
        with pytest.raises(builtin):
            raise kind("x")


def test_an_invariant_holds_under_dash_O() -> None:
    invariant(1, "fine")
    with pytest.raises(InvariantViolated, match="must be"):
        invariant([], "must be")
    code = "from gfs.errors import invariant\ninvariant(False, 'kept')"
    run = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "InvariantViolated: kept" in run.stderr


@EVERY_ERROR
def test_an_error_of_a_blocking_call_is_a_built_in_one(kind: type[GfsError]) -> None:
    before = of_class(kind)
    error = as_built_in(before, "/x")
    assert isinstance(error, (OSError, ValueError))
    is_of_all_files = issubclass(kind, (errors.MasterUnavailable, errors.NotEnoughChunkservers))
    clones = [copy.copy(error), pickle.loads(pickle.dumps(error))]
    for each in (error, *clones, as_built_in(error, "/y")):
        if isinstance(each, OSError):
            assert each.errno in errno.errorcode
            assert each.filename == (None if is_of_all_files else "/x")
        assert isinstance(each, kind)
        assert (str(each), each.code, each.request) == ("/x: why", kind.code, "r-1")
        assert isinstance(each, (OSError, ValueError))
        assert (error is before) == issubclass(kind, (OSError, ValueError))


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (errors.NotFound, errno.ENOENT),
        (errors.DirectoryNotEmpty, errno.ENOTEMPTY),
        (errors.FileChanged, errno.ESTALE),
        (errors.NotEnoughShadows, errno.EBUSY),
        (errors.NotEnoughChunkservers, errno.ETIMEDOUT),
        (errors.StaleVersion, errno.EIO),
    ],
)
def test_a_built_in_error_has_the_errno_that_fits(kind: type[GfsError], number: int) -> None:
    error = as_built_in(kind("x"))
    assert isinstance(error, OSError)
    assert error.errno == number
    assert as_built_in(b"no error") == b"no error"


def test_an_error_is_of_two_paths_where_the_call_has_two() -> None:
    error = pickle.loads(pickle.dumps(as_built_in(errors.AlreadyExists("x"), "/from", "/to")))
    assert (error.filename, error.filename2, str(error)) == ("/from", "/to", "x")


def made_again(kind: type[Exception], message: str) -> Exception:
    """As torch makes an error of what a process of a loader has sent: the class and the words."""
    if getattr(kind, "message", None):
        return kind(message=message)  # type: ignore[call-arg]
    return kind(message)


def test_the_class_of_an_error_reaches_other_processes_and_makes_it_again() -> None:
    built_in = [type(as_built_in(kind("x"))) for kind in tree()]
    for kind in (*tree(), *built_in):
        error = made_again(pickle.loads(pickle.dumps(kind)), "caught: x")
        assert type(error) is kind
        assert str(error) == "caught: x"
    code = "import pickle, sys; print([k.__name__ for k in pickle.load(sys.stdin.buffer)])"
    sent = pickle.dumps(built_in)
    run = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert run.stdout.decode().strip() == str([kind.__name__ for kind in tree()])
