"""Loops that do nothing but multiply-adds, or nothing but moving bytes, as LLVM IR: what a machine's peaks are measured with.

Every loop is `void NAME(ptr x, ptr y, ptr z, i64 bytes, i64 rounds)`, and a round is `STEPS` steps of every chain of multiply-adds or one pass
over arrays of `bytes` bytes. No passes are to be run over the text: what is written is what is timed.
"""

from __future__ import annotations

from fgrad.codegen import team
from fgrad.codegen.target import TargetInfo

STEPS = 1000
STREAMS = {"read": 1, "copy": 2, "triad": 3}  # name -> arrays that it goes through


def chains(target: TargetInfo) -> int:
    """Independent chains of multiply-adds, each in a register of its own."""
    return min(24, target.registers - 4)


def module_text(target: TargetInfo) -> str:
    """All loops for a machine."""
    loops = [_fma_text(target, bits) for bits in (32, 64)]
    loops += [_stream_text(target, name, False) for name in STREAMS]
    loops += [_stream_text(target, name, True) for name in ("copy", "triad")]
    return "\n".join([team.common_text(), _FIXED, *loops])


_FIXED = """
!0 = !{i32 1}

define void @nothing(ptr %table, i64 %segment) {
  ret void
}

define internal void @task(ptr %frame, i64 %piece, i64 %worker) {
  ret void
}

define void @region(ptr %pool, i64 %pieces, i64 %rounds) {
entry:
  br label %loop
loop:
  %n = phi i64 [ 0, %entry ], [ %n.next, %loop ]
  call void @"team.run"(ptr %pool, ptr @task, ptr null, i64 %pieces)
  %n.next = add i64 %n, 1
  %more = icmp ult i64 %n.next, %rounds
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def _fma_text(target: TargetInfo, bits: int) -> str:
    """Independent chains `s = a * b + s`, each in a register of its own: `STEPS` steps a round."""
    lanes, kind = target.lanes(bits // 8), "float" if bits == 32 else "double"
    vector, suffix = f"<{lanes} x {kind}>", f"v{lanes}f{bits}"
    every = range(chains(target))
    phis = [f"  %s{c} = phi {vector} [ %a, %entry ], [ %t{c}, %loop ]" for c in every]
    steps = [
        f"  %t{c} = call {vector} @llvm.fma.{suffix}({vector} %a, {vector} %b, {vector} %s{c})" for c in every
    ]
    if not target.fma:
        steps = [f"  %m{c} = fmul {vector} %a, %s{c}\n  %t{c} = fadd {vector} %b, %m{c}" for c in every]
    stores = [f"  store {vector} %t{c}, ptr %p{c}, align 1" for c in every]
    places = [f"  %p{c} = getelementptr i8, ptr %x, i64 {c * target.vector_bytes}" for c in every]
    return "\n".join(
        [
            f"declare {vector} @llvm.fma.{suffix}({vector}, {vector}, {vector})",
            f"define void @fma{bits}(ptr %x, ptr %y, ptr %z, i64 %bytes, i64 %rounds) {{",
            "entry:",
            *places,
            f"  %steps = mul i64 %rounds, {STEPS}",
            f"  %a = load {vector}, ptr %x, align 1",
            "  %q = getelementptr i8, ptr %x, i64 64",
            f"  %b = load {vector}, ptr %q, align 1",
            "  br label %loop",
            "loop:",
            "  %n = phi i64 [ 0, %entry ], [ %n.next, %loop ]",
            *phis,
            *steps,
            "  %n.next = add i64 %n, 1",
            "  %more = icmp ult i64 %n.next, %steps",
            "  br i1 %more, label %loop, label %done",
            "done:",
            *stores,
            "  ret void",
            "}",
        ]
    )


def _stream_text(target: TargetInfo, name: str, past: bool) -> str:
    """One pass a round, eight vectors a step; `past` the caches: with non-temporal stores."""
    size, lanes = target.vector_bytes, target.lanes(4)
    vector, ints = f"<{lanes} x float>", f"<{lanes} x i32>"
    body: list[str] = []
    for u in range(8):
        body.append(f"  %o{u} = add i64 %i, {u * size}")
        source = "%x" if name == "read" else "%y"
        body.append(f"  %ya{u} = getelementptr i8, ptr {source}, i64 %o{u}")
        if name == "read":
            body.append(f"  %v{u} = load {ints}, ptr %ya{u}, align {size}")
            body.append(f"  %t{u} = xor {ints} %s{u}, %v{u}")
            continue
        body.append(f"  %b{u} = load {vector}, ptr %ya{u}, align {size}")
        if name == "triad":
            body.append(f"  %za{u} = getelementptr i8, ptr %z, i64 %o{u}")
            body.append(f"  %c{u} = load {vector}, ptr %za{u}, align {size}")
            body.append(f"  %r{u} = fadd {vector} %b{u}, %c{u}")
        body.append(f"  %xa{u} = getelementptr i8, ptr %x, i64 %o{u}")
        value = f"%r{u}" if name == "triad" else f"%b{u}"
        body.append(
            f"  store {vector} {value}, ptr %xa{u}, align {size}" + (", !nontemporal !0" if past else "")
        )
    carried = range(8) if name == "read" else range(0)
    outer = [f"  %w{u} = phi {ints} [ zeroinitializer, %entry ], [ %t{u}, %after ]" for u in carried]
    inner = [f"  %s{u} = phi {ints} [ %w{u}, %pass ], [ %t{u}, %loop ]" for u in carried]
    stores = [f"  store volatile {ints} %t{u}, ptr %x, align {size}" for u in carried]
    return "\n".join(
        [
            f'define void @"{name}{".past" if past else ""}"(ptr %x, ptr %y, ptr %z, i64 %bytes, i64 %rounds) {{',
            "entry:",
            "  br label %pass",
            "pass:",
            "  %n = phi i64 [ 0, %entry ], [ %n.next, %after ]",
            *outer,
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %pass ], [ %i.next, %loop ]",
            *inner,
            *body,
            f"  %i.next = add i64 %i, {8 * size}",
            "  %more = icmp ult i64 %i.next, %bytes",
            "  br i1 %more, label %loop, label %after",
            "after:",
            "  %n.next = add i64 %n, 1",
            "  %again = icmp ult i64 %n.next, %rounds",
            "  br i1 %again, label %pass, label %done",
            "done:",
            *stores,
            "  ret void",
            "}",
        ]
    )
