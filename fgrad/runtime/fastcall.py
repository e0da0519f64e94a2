"""The straight way into a compiled program: one Python function written for one structure and one set of types.

A call of a small program takes microseconds, most of which a general implementation spends on walking the arguments,
matching types and making results. So a program that is called again gets a function of its own, which does those steps
without a loop. For `step({"b": b, "w": w}, x)` with the first argument donated, it is

    def call(args, kwargs):
        work = None
        try:
            if kwargs: return MISS
            n0, x2, = args
            if type(n0) is not dict or len(n0) != 2: return MISS
            x0 = n0['b']
            x1 = n0['w']
            if x0.type is not T0 or x1.type is not T1: return MISS
            if type(x2) is not ndarray or x2.shape != S2 or (x2.dtype is not D2 and x2.dtype != D2): return MISS
            h2 = header(id(x2) + 16)
            if h2.flags & 257 != 257: return MISS
            work = idle.pop() if idle else new_workspace(executable)
            g0, = work.pools
            for lot in g0.lots:
                if count(lot[0]) == FREE: break
            else: lot = g0.more()
            b0, bytes0, q2, = lot
            with ownership:
                m0 = x0._memory; p0 = x0._ptr; x0._memory = x0._ptr = None
                m1 = x1._memory; p1 = x1._ptr; x1._memory = x1._ptr = None
                try:
                    if not blocks.issuperset(map(type, (m0, m1,))): raise Refused
                    pack(work.table, 24, p0, p1, h2.data)
                except BaseException: restore(((x0, m0, p0), (x1, m1, p1),)); raise
            work.bytes[64:72] = bytes0
        except Exception:
            if work is not None: idle.append(work)
            return MISS
        native(work.address, 0)
        if work.status.value: finish(work)
        else: idle.append(work)
        y0, y1, y2, = starmap(Array, NOTHING)
        y0.type = R0; y0._ptr = p0; y0._memory = m0
        ...
        return ({'b': y0, 'w': y1}, y2, )

Whatever does not fit (another structure, another type, an array whose address is not known yet or that was donated, one
given twice) is a `MISS` without a trace: the general way (`compiled.py`) then does the call, or raises the error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import starmap
from typing import Any

import numpy as np
import optree

from fgrad import tree
from fgrad.array import ConcreteArray, wrap
from fgrad.ir import Type
from fgrad.memory import HEADER_AT, PLAIN, READABLE, Block, Header, ownership
from fgrad.runtime.executable import Executable, Workspace
from fgrad.runtime.outputs import FREE, count

MISS: Any = object()  # what a fast call returns if it is not for these arguments
_SCALAR = {"bool": "?7x", "int32": "i4x", "int64": "q", "float32": "f4x", "float64": "d"}  # 8 bytes each


class Refused(Exception):
    """Inside a fast call: somebody else may look at a donated array."""


def _restore(claimed: Sequence[tuple[ConcreteArray, Any, Any]]) -> None:
    """Give arrays back what a call that is not carried out took from them. (One given twice had nothing the second time.)"""
    for x, memory, pointer in claimed:
        if memory is not None:
            x._memory, x._ptr = memory, pointer


def _copied(x: np.ndarray) -> ConcreteArray:
    return wrap(np.array(x, order="C"))


class _Arguments:
    """The lines that take the leaves out of `args` and `kwargs`, for a structure like that of an example."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}  # the objects that the lines mention
        self.leaves: list[Any] = []
        self.nodes = 0

    def name(self, prefix: str, value: Any) -> str:
        found = f"{prefix}{len(self.names)}"
        self.names[found] = value
        return found

    def key(self, key: Any) -> str:
        return repr(key) if type(key) in (str, int) else self.name("K", key)

    def new(self, x: Any) -> str:
        """A variable for a child: a leaf's is numbered as the leaf."""
        if x is None or tree.is_node(x):
            self.nodes += 1
            return f"n{self.nodes}"
        self.leaves.append(x)
        return f"x{len(self.leaves) - 1}"

    def visit(self, x: Any, variable: str) -> bool:
        """Lines for the node `x`, held by `variable`; False if its class is none that can be written out."""
        cls = type(x)
        if x is None:
            self.lines.append(f"if {variable} is not None: return MISS")
            return True
        if cls is dict:
            self.lines.append(f"if type({variable}) is not dict or len({variable}) != {len(x)}: return MISS")
            for key in tree.keys(x):
                child = self.new(x[key])
                self.lines.append(f"{child} = {variable}[{self.key(key)}]")
                if child[0] == "n" and not self.visit(x[key], child):
                    return False
            return True
        if cls in (tuple, list):
            check = f"type({variable}) is not {cls.__name__}"
        elif optree.is_namedtuple_class(cls):
            check = f"type({variable}) is not {self.name('C', cls)}"
        else:
            flatten = tree.flattener(cls)
            if flatten is None:
                return False
            _, metadata = flatten(x)[:2]
            check = f"type({variable}) is not {self.name('C', cls)}"
            self.lines.append(f"if {check}: return MISS")
            self.lines.append(f"{variable}, metadata = {self.name('F', flatten)}({variable})[:2]")
            check = f"metadata != {self.name('M', metadata)}"
            x = tuple(flatten(x)[0])
            self.lines.append(f"if {check}: return MISS")
            check = ""
        if check:
            self.lines.append(f"if {check}: return MISS")
        # Numbered depth first, as leaves are.
        at = len(self.lines)
        self.lines.append("")
        children = []
        for child in x:
            children.append(self.new(child))
            if children[-1][0] == "n" and not self.visit(child, children[-1]):
                return False
        self.lines[at] = f"{''.join(c + ', ' for c in children) or '()'} = {variable}"
        return True


def _result(a: _Arguments, node: Any, names: Iterator[str]) -> str:
    """The expression that puts the next of the variables `names` into a tree of the structure `node`."""
    if node.is_leaf():
        return next(names)
    if node.type in (dict, tuple, list):
        parts = [_result(a, child, names) for child in node.children()]
        if node.type is dict:  # in the order of the dict that the function returned, as `unflatten` does
            written = dict(zip(node.entries(), parts, strict=True))
            ordered = node.unflatten([None] * node.num_leaves)
            return f"{{{', '.join(f'{a.key(k)}: {written[k]}' for k in ordered)}}}"
        inside = "".join(part + ", " for part in parts)
        return f"({inside})" if node.type is tuple else f"[{inside}]"
    inside = "".join(f"{next(names)}, " for _ in range(node.num_leaves))
    return f"{a.name('U', node.unflatten)}(({inside}))"


def fast_call(
    args: Any,
    kwargs: Any,
    kinds: Sequence[Any],
    scalar_dtype: Callable[[Any], np.dtype],
    executable: Executable,
    captured: Sequence[int],
    donated: Sequence[int],
    out_types: Sequence[Type],
    out_tree: Any,
    forwarded: Mapping[int, int],
    unresolved: Collection[int],
    resolve: Callable[[ConcreteArray], Any],
) -> Callable[[Any, Any], Any] | None:
    """A function of `(args, kwargs)` that calls `executable` if they are like these, and else returns `MISS`.

    `kinds` are what the leaves must be (a `Type`, or the type of a Python scalar), `captured` the addresses of the inputs
    after them; `forwarded` says which results are arguments as they came; `unresolved` numbers the leaves whose address `resolve` may have to find first (arrays made by eager
    operations). None if there is no such function for arguments like these (leaves of foreign classes, ordered dicts).
    """
    if not READABLE:
        return None
    a = _Arguments()
    if not (a.visit(args, "args") and a.visit(kwargs, "kwargs")):
        return None
    if any(type(a.leaves[i]) not in (ConcreteArray, np.ndarray) for i in forwarded.values()):
        return None
    types: list[str] = []
    arrays: list[int] = []
    scalars: list[str] = []
    pointers: list[str] = []
    late: list[str] = []
    formats = ""
    for i, (x, kind) in enumerate(zip(a.leaves, kinds, strict=True)):
        cls = type(x)
        if cls is ConcreteArray:
            types.append(f"x{i}.type is not {a.name('T', kind)}")
            arrays.append(i)
            if i in unresolved and i not in donated:
                late.append(f"if x{i}._ptr is None: resolve(x{i})")
            pointers.append(f"p{i}" if i in donated else f"x{i}._ptr")
        elif i in donated:
            return None
        elif cls is kind:
            letter = _SCALAR.get(scalar_dtype(x).name)
            if letter is None:
                return None
            late.append(f"if type(x{i}) is not {a.name('C', cls)}: return MISS")
            slot = 8 * (executable.layout.size + len(scalars))
            pointers.append(f"work.address + {slot}")
            scalars.append(f"x{i}, ")
            formats += letter
        elif cls is np.ndarray or issubclass(cls, np.generic):
            late.append(f"if type(x{i}) is not {a.name('C', cls)}: return MISS")
            if cls is not np.ndarray:
                late.append(f"x{i} = asarray(x{i})")
            d, s = a.name("D", kind.dtype), a.name("S", kind.shape)
            late.append(f"if x{i}.shape != {s} or (x{i}.dtype is not {d} and x{i}.dtype != {d}): return MISS")
            late.append(f"h{i} = header(id(x{i}) + {HEADER_AT})")
            late.append(f"if h{i}.flags & {PLAIN} != {PLAIN}: return MISS")
            pointers.append(f"h{i}.data")
        else:
            return None
    pointers += [str(p) for p in captured]
    checks = [f"if {' or '.join(types)}: return MISS"] if types else []
    kept = [i for i in arrays if i not in donated]
    if kept:  # what keeps the elements alive is read before their addresses, which donation takes away first
        checks.append(f"keep = ({''.join(f'x{i}._memory, ' for i in kept)})")
    body = [*a.lines, *late, *checks, "work = idle.pop() if idle else new_workspace(executable)"]

    placed = executable.program.placed
    outs = range(executable.n_outputs)
    memory = {j: (f"m{i}", f"p{i}") for j, i in placed.items()}
    letters = ["Q"] * len(pointers) + ["8x"] * len(outs)
    packed = list(pointers)
    slices = []
    for g, group in enumerate(executable.groups):
        body += [
            f"pool = work.pools[{g}]",
            "for lot in pool.lots:",
            "    if count(lot[0]) == FREE: break",
            "else: lot = pool.more()",
            f"b{g}, bytes{g}, {''.join(f'q{j}, ' for j in group.members)} = lot",
        ]
        memory |= {j: (f"b{g}", f"q{j}") for j in group.members}
        first, n = group.members[0], len(group.members)
        if group.members == tuple(range(first, first + n)):
            at = executable.pack_at + 8 * (len(pointers) + first)
            slices.append(f"work.bytes[{at}:{at + 8 * n}] = bytes{g}")
        else:
            for j in group.members:
                letters[len(pointers) + j] = "Q"
    packed += [memory[j][1] for j in outs if letters[len(pointers) + j] == "Q"]
    while letters and letters[-1] == "8x":
        letters.pop()
    pack = struct.Struct("=" + "".join(letters)).pack_into
    if scalars:
        w_at = 8 * executable.layout.size
        pack_scalars = a.name("P", struct.Struct("=" + formats).pack_into)
        body.append(f"{pack_scalars}(work.table, {w_at}, {''.join(scalars)})")
    packing = f"pack(work.table, {executable.pack_at}, {', '.join(packed)})"
    if donated:
        body.append("with ownership:")
        body += [
            f"    m{i} = x{i}._memory; p{i} = x{i}._ptr; x{i}._memory = x{i}._ptr = None" for i in donated
        ]
        body.append("    try:")
        if placed:
            owned = "".join(f"m{i}, " for i in sorted(set(placed.values())))
            body.append(f"        if not blocks.issuperset(map(type, ({owned}))): raise Refused")
        body.append(f"        {packing}")
        claimed = "".join(f"(x{i}, m{i}, p{i}), " for i in donated)
        body.append(f"    except BaseException: restore(({claimed})); raise")
    else:
        body.append(packing)
    body += slices
    after = []
    if executable.straight:
        after += ["native(work.address, 0)"] if executable.items else []
    else:
        after.append("run_items(work, items)")
    after.append("finish(work)" if executable.program.checks else "idle.append(work)")
    if executable.n_outputs:
        after.append(f"{''.join(f'y{j}, ' for j in outs)} = starmap(Array, {((),) * executable.n_outputs!r})")
    for j in outs:
        block, address = memory[j]
        after.append(
            f"y{j}.type = {a.name('R', out_types[j])}; y{j}._memory = {block}; y{j}._ptr = {address}"
        )
    computed = (f"y{j}" for j in outs)
    same = {
        n: f"x{i}" if type(a.leaves[i]) is ConcreteArray else f"copied(x{i})" for n, i in forwarded.items()
    }
    results = [same[n] if n in same else next(computed) for n in range(out_tree.num_leaves)]
    after.append(f"return {_result(a, out_tree, iter(results))}")

    names = a.names | {
        "MISS": MISS,
        "ndarray": np.ndarray,
        "copied": _copied,
        "asarray": np.asarray,
        "header": Header.from_address,
        "idle": executable.idle,
        "new_workspace": Workspace,
        "executable": executable,
        "count": count,
        "FREE": FREE,
        "pack": pack,
        "ownership": ownership,
        "blocks": {Block},
        "restore": _restore,
        "resolve": resolve,
        "Refused": Refused,
        "native": executable.native.call,
        "run_items": executable.run_items,
        "items": executable.items,
        "finish": executable.finish,
        "starmap": starmap,
        "Array": ConcreteArray,
    }
    text = "\n".join(
        [
            "def call(args, kwargs):",
            "    work = None",
            "    try:",
            *("        " + line for line in body),
            "    except Exception:",
            "        if work is not None: idle.append(work)",
            "        return MISS",
            *("    " + line for line in after),
        ]
    )
    exec(text, names)
    call = names.pop("call")  # no cycle: a program and its memory go with the function that was compiled
    call.source = text
    return call
