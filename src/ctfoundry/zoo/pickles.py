"""Checkpoints that are pickles, read without running anything in them.

A pickle is a program. Before torch sees one, its directory and its instructions are looked at, byte by byte and without
executing: it must be the zip that `torch.save` writes, unpacked, and ask for tensors, plain containers and nothing else. What
is left goes through ``torch.load(weights_only=True)``, whose own list is longer than ours. There is no way around either.
"""

from __future__ import annotations

import pickletools
import warnings
from collections import deque
from pathlib import Path
from typing import Any

from ctfoundry.errors import CTFoundryError, WeightsError
from ctfoundry.zoo.headers import check_size

PICKLE_CAP_BYTES = 64 * 2**20
"""Largest program in a checkpoint: names and shapes. Published ones have 0.1 to 1 MiB; the numbers lie beside it."""

_STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_MARK = object()
_PUSHED = frozenset({"BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_MADE = frozenset({"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "collections Counter",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
        *(f"torch {kind}" for kind in _STORAGES),
        *(
            f"torch {kind}"
            for kind in (
                "float64",
                "float32",
                "float16",
                "bfloat16",
                "int64",
                "int32",
                "int16",
                "int8",
                "uint8",
                "bool",
            )
        ),
    }
)
"""What a checkpoint may ask for: rebuilt tensors, their types, plain containers. torch's own list also has things that allocate as
much as a number says. Everything else is refused by its name, whether harmful or not."""

_AGAIN = "copy or download the file again"
_RESAVE = "on a machine where you trust it, load it there and save its state_dict as safetensors"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as the first pickle of its old format
_STORED = 0


def read_checkpoint(path: Path) -> Any:
    """The plain data and tensors of a checkpoint that `torch.save` wrote; tensors are mapped, not copied.

    Raises WeightsError: an archive of another kind, names that lead out of it, programs that ask for anything but tensors, and
    whatever is cut off or says of itself what is not so. Nothing of the file is ever executed.
    """
    import torch

    check_size(path)
    _check_kind(path)
    _check_program(path, *_program(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types that we convert anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CTFoundryError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, KeyError, ... for damage
        text = str(error).strip().splitlines()
        raise WeightsError(
            f"torch cannot read it safely: {text[0][:200] if text else type(error).__name__}", where=path, do=_AGAIN
        ) from error


def _check_kind(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:4] == b"PK\3\4":
        return
    if start[257:262] == b"ustar":
        what, do = "is a tar archive, torch's format before 2017; it cannot be read safely", _RESAVE
    elif start.startswith(_LEGACY):
        what, do = "is a checkpoint in torch's format before 1.6, which is several bare pickles", _RESAVE
    elif start[:1] == b"\x80":
        what, do = "is a bare pickle", _RESAVE
    elif start[:8] == b"\x89HDF\r\n\x1a\n":
        what, do = "is an HDF5 file", "give a safetensors file or a torch checkpoint"
    elif not start:
        what, do = "is empty", _AGAIN
    else:
        what, do = "is neither a safetensors file nor a checkpoint of torch.save", "give one of these, or a hub folder"
    raise WeightsError(what, where=path, do=do)


def _program(path: Path) -> tuple[bytes, dict[str, int]]:
    """The pickle in a checkpoint's archive, and the bytes of each storage beside it, after names, sizes and checksums are checked."""
    from ctfoundry.io.zip_directory import members, pieces

    try:
        found = members(path)
        tops = {member.name.split("/")[0] for member in found}
        programs = [member for member in found if member.name.count("/") == 1 and member.name.endswith("/data.pkl")]
        if any("/code/" in member.name or member.name.endswith("/constants.pkl") for member in found):
            raise WeightsError("is a TorchScript program, not weights", where=path, do=_RESAVE)
        if len(tops) != 1 or len(programs) != 1:
            raise WeightsError("is a zip archive, but none of torch.save", where=path)
        if any(member.method != _STORED for member in found):
            raise WeightsError("has packed files in it, which torch.save never writes", where=path, do=_RESAVE)
        if programs[0].size > PICKLE_CAP_BYTES:
            raise WeightsError(f"its pickle has {programs[0].size:,} bytes, more than any list of weights", where=path)
        for member in found:
            deque(pieces(path, member), maxlen=0)  # compares the checksum, which torch does not
        top = next(iter(tops)) + "/data/"
        storages = {m.name.removeprefix(top): m.size for m in found if m.name.startswith(top)}
        return b"".join(pieces(path, programs[0])), storages
    except WeightsError:
        raise
    except CTFoundryError as error:
        raise WeightsError(error.what, where=path, do=error.do) from error


def _check_program(path: Path, program: bytes, storages: dict[str, int]) -> None:
    """Follow a pickle's instructions with constants alone, so that it says what it asks for and what it claims, and nothing is made."""
    try:
        asked, claims, odd = _follow(program)
    except Exception as error:  # genops raises ValueError, UnicodeDecodeError, ...; an empty stack IndexError
        raise WeightsError(f"its pickle is damaged: {str(error)[:120]}", where=path, do=_AGAIN) from error
    strange = [name.replace(" ", ".") for name in asked if name not in ALLOWED]
    if strange:
        raise WeightsError(
            f"its pickle asks for {', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''}, which are no weights; nothing was run",
            where=path,
            do=_RESAVE,
        )
    if odd:
        raise WeightsError(f"its pickle uses {odd}, which torch.save does not; nothing was run", where=path, do=_RESAVE)
    for claim in claims:
        # torch would read on into the next tensor, or beyond the file
        match claim:
            case ("storage", str(kind), str(key), str(_), int(count)) if kind.removeprefix("torch ") in _STORAGES:
                need = count * _STORAGES[kind.removeprefix("torch ")]
                if storages.get(key) != need:
                    held = f"{storages[key]:,} bytes" if key in storages else "nothing"
                    raise WeightsError(
                        f"its pickle claims {need:,} bytes for storage {key[:40]!r}, the archive has {held}",
                        where=path,
                        do=_AGAIN,
                    )
            case _:
                raise WeightsError(
                    "its pickle refers to something that is no storage of numbers", where=path, do=_RESAVE
                )


def _follow(program: bytes) -> tuple[list[str], list[Any], str | None]:
    """(names asked for, what is referred to beside the pickle, an instruction or protocol that torch.save does not use)."""
    asked: dict[str, None] = {}
    claims: list[Any] = []
    odd: str | None = None
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for code, argument, _ in pickletools.genops(program):
        name = code.name
        if name == "PROTO":
            odd = odd if argument == 2 else f"protocol {argument}"
        elif name == "GLOBAL":
            asked[str(argument)] = None
            stack.append(str(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _PUSHED:
            stack.append(argument)
        elif name in _MADE:
            stack.append(None)
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            at = max(i for i, value in enumerate(stack) if value is _MARK)
            items = tuple(stack[at + 1 :])
            del stack[at:]
            if name == "TUPLE":
                # a tuple of tuples without end is no claim, and would grow by reference
                stack.append(items if all(not isinstance(item, tuple) for item in items) else None)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            del stack[-int(name[-1]) :]
            stack.append(None)
        elif name in ("APPEND", "BUILD"):
            stack.pop()
        elif name == "SETITEM":
            del stack[-2:]
        elif name in ("REDUCE", "NEWOBJ"):
            del stack[-2:]
            stack.append(None)
        elif name == "BINPERSID":
            claims.append(stack.pop())
            stack.append(None)
        elif name != "STOP":
            odd = name
            break  # what follows is not looked at, because nothing of the file is read then
    return list(asked), claims, odd
