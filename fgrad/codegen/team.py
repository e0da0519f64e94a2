"""How the threads of one running program share its work, as LLVM IR that is linked into programs that need it.

A stretch of native code (a segment) that has enough to share is one region of the threading layer: `parallel_for` starts
it with one worker a thread. Worker 0 is the caller and runs the segment; the others help whenever it hands out a task, a function
`void task(ptr frame, i64 piece, i64 worker)` to be run for every piece:

    caller                                    helpers
    task, frame -> team                       wait until there are pieces
    word = (epoch + 1, pieces, next 0)  --->  take a piece by compare-and-swap on `word`, run it, done += 1
    takes pieces as well
    waits until done = pieces

The epoch in `word` makes a late compare-and-swap fail; whoever has taken a piece keeps the task alive, as the caller waits for it.
A helper with nothing to do pauses for some 50 us, then gives the processor away between looks, and leaves after about 0.1 s: a serial step
of a millisecond must not cost the rest of a long program its threads.
The caller never waits for a thread that has not taken a piece, except for those that are in the region when it ends.

On a machine where others want the processors too, a thread that has taken a piece may be put to sleep for milliseconds, and sharing is
then slower than one thread. So each segment notes the time of its runs of both kinds (the first eight are of either kind by turns) and
takes the faster; every 128th run is of the other.

A team is on the caller's stack. The pool belongs to the process (`fgrad.runtime.threads`): the address of `parallel_for` (zero: stay
serial), the number of threads, a function that gives the processor away, whether to share without a choice (for tests), and, in a
cache line of its own, whether a region is running. Only one is at a time: other callers run serially meanwhile, with the same results.
"""

from __future__ import annotations

import platform

from llvmlite import ir

POINTER, I64 = ir.PointerType(), ir.IntType(64)
TASK = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64])
SEGMENT = ir.FunctionType(ir.VoidType(), [POINTER, POINTER])

# Byte offsets. In a team: word 0, done 64, task 128, frame 136, table 192, yield 200. In a pool: parallel_for 0, threads 8,
# yield 16, always 24, running 64.
_COMMON = """
define internal void @"team.pause"(ptr %team, i64 %waited) nounwind {
entry:
  PAUSE
  %long = icmp ugt i64 %waited, 20000
  br i1 %long, label %give, label %done
give:
  %slot = getelementptr i8, ptr %team, i64 200
  %yield = load ptr, ptr %slot, align 8
  %none = icmp eq ptr %yield, null
  br i1 %none, label %done, label %call
call:
  %ignored = call i32 %yield()
  br label %done
done:
  ret void
}

define internal void @"team.work"(ptr %team, i64 %worker) noinline nounwind {
entry:
  br label %look
look:
  %word = load atomic i64, ptr %team acquire, align 8
  %piece = and i64 %word, 65535
  %above = lshr i64 %word, 16
  %pieces = and i64 %above, 65535
  %some = icmp ult i64 %piece, %pieces
  %mine = icmp ult i64 %worker, %pieces
  %go = and i1 %some, %mine
  br i1 %go, label %take, label %done
take:
  %following = add i64 %word, 1
  %pair = cmpxchg ptr %team, i64 %word, i64 %following acq_rel acquire
  %got = extractvalue { i64, i1 } %pair, 1
  br i1 %got, label %run, label %look
run:
  %task.slot = getelementptr i8, ptr %team, i64 128
  %task = load ptr, ptr %task.slot, align 8
  %frame.slot = getelementptr i8, ptr %team, i64 136
  %frame = load ptr, ptr %frame.slot, align 8
  call void %task(ptr %frame, i64 %piece, i64 %worker)
  %count = getelementptr i8, ptr %team, i64 64
  %old = atomicrmw add ptr %count, i64 1 acq_rel
  br label %look
done:
  ret void
}

define internal void @"team.help"(ptr %team, i64 %worker) noinline nounwind {
entry:
  br label %look
look:
  %waited = phi i64 [ 0, %entry ], [ 0, %work ], [ %more, %wait ]
  %word = load atomic i64, ptr %team acquire, align 8
  %over = icmp eq i64 %word, -1
  br i1 %over, label %done, label %check
check:
  %piece = and i64 %word, 65535
  %above = lshr i64 %word, 16
  %pieces = and i64 %above, 65535
  %some = icmp ult i64 %piece, %pieces
  %mine = icmp ult i64 %worker, %pieces
  %go = and i1 %some, %mine
  br i1 %go, label %work, label %idle
work:
  call void @"team.work"(ptr %team, i64 %worker)
  br label %look
idle:
  %more = add i64 %waited, 1
  %enough = icmp ugt i64 %more, 200000
  br i1 %enough, label %done, label %wait
wait:
  %patience = add i64 %more, 17000
  call void @"team.pause"(ptr %team, i64 %patience)
  br label %look
done:
  ret void
}

define internal void @"team.run"(ptr %team, ptr %task, ptr %frame, i64 %pieces) noinline nounwind {
entry:
  %alone = icmp eq ptr %team, null
  br i1 %alone, label %serial, label %publish
serial:
  %n = phi i64 [ 0, %entry ], [ %n.next, %serial ]
  call void %task(ptr %frame, i64 %n, i64 0)
  %n.next = add i64 %n, 1
  %n.more = icmp ult i64 %n.next, %pieces
  br i1 %n.more, label %serial, label %done
publish:
  %task.slot = getelementptr i8, ptr %team, i64 128
  store ptr %task, ptr %task.slot, align 8
  %frame.slot = getelementptr i8, ptr %team, i64 136
  store ptr %frame, ptr %frame.slot, align 8
  %count = getelementptr i8, ptr %team, i64 64
  store atomic i64 0, ptr %count monotonic, align 8
  %old = load atomic i64, ptr %team monotonic, align 8
  %epoch = lshr i64 %old, 32
  %epoch.next = add i64 %epoch, 1
  %high = shl i64 %epoch.next, 32
  %low = shl i64 %pieces, 16
  %word = or i64 %high, %low
  store atomic i64 %word, ptr %team release, align 8
  call void @"team.work"(ptr %team, i64 0)
  br label %look
look:
  %waited = phi i64 [ 0, %publish ], [ %more, %wait ]
  %ready = load atomic i64, ptr %count acquire, align 8
  %all = icmp eq i64 %ready, %pieces
  br i1 %all, label %done, label %wait
wait:
  %more = add i64 %waited, 1
  call void @"team.pause"(ptr %team, i64 %waited)
  br label %look
done:
  ret void
}
"""

_SEGMENT = """
define internal void @"SEGMENT.worker"(ptr %args, ptr %dimensions, ptr %steps, ptr %team) nounwind {
entry:
  %worker = load i64, ptr %args, align 8
  %first = icmp eq i64 %worker, 0
  br i1 %first, label %lead, label %help
lead:
  %table.slot = getelementptr i8, ptr %team, i64 192
  %table = load ptr, ptr %table.slot, align 8
  call void @"SEGMENT"(ptr %table, ptr %team)
  store atomic i64 -1, ptr %team release, align 8
  ret void
help:
  call void @"team.help"(ptr %team, i64 %worker)
  ret void
}

@"SEGMENT.state" = internal global [3 x i64] zeroinitializer, align 64

define internal void @"SEGMENT.note"(ptr %best, i64 %begin) nounwind {
entry:
  %end = call i64 CLOCK()
  %time = sub i64 %end, %begin
  %old = load atomic i64, ptr %best monotonic, align 8
  %less = icmp ult i64 %time, %old
  %first = icmp eq i64 %old, 0
  %replace = or i1 %less, %first
  %more = sub i64 %time, %old
  %part = lshr i64 %more, 2
  %between = add i64 %old, %part
  %new = select i1 %replace, i64 %time, i64 %between
  store atomic i64 %new, ptr %best monotonic, align 8
  ret void
}

define internal void @"SEGMENT.enter"(ptr %table, ptr %unused) nounwind {
entry:
  %team = alloca i8, i64 256, align 64
  %args = alloca i64, align 8
  %dimensions = alloca i64, align 8
  %steps = alloca i64, align 8
  %pool.slot = getelementptr i8, ptr %table, i64 POOL
  %pool = load ptr, ptr %pool.slot, align 8
  %none = icmp eq ptr %pool, null
  br i1 %none, label %serial, label %known
known:
  %start = load ptr, ptr %pool, align 8
  %threads.slot = getelementptr i8, ptr %pool, i64 8
  %wanted = load i64, ptr %threads.slot, align 8
  %fewer = icmp ult i64 %wanted, PIECES
  %threads = select i1 %fewer, i64 %wanted, i64 PIECES
  %off = icmp eq ptr %start, null
  %one = icmp ult i64 %threads, 2
  %stay = or i1 %off, %one
  br i1 %stay, label %serial, label %choose
choose:
  %serial.slot = getelementptr i8, ptr @"SEGMENT.state", i64 8
  %calls.slot = getelementptr i8, ptr @"SEGMENT.state", i64 16
  %shared.time = load atomic i64, ptr @"SEGMENT.state" monotonic, align 8
  %serial.time = load atomic i64, ptr %serial.slot monotonic, align 8
  %calls = atomicrmw add ptr %calls.slot, i64 1 monotonic
  %phase = and i64 %calls, 127
  %probe = icmp eq i64 %phase, 127
  %faster = icmp ule i64 %shared.time, %serial.time
  %better = xor i1 %faster, %probe
  %early = icmp ult i64 %calls, 8
  %even = trunc i64 %calls to i1
  %chosen = select i1 %early, i1 %even, i1 %better
  %always.slot = getelementptr i8, ptr %pool, i64 24
  %always.word = load i64, ptr %always.slot, align 8
  %always = icmp ne i64 %always.word, 0
  %share = or i1 %chosen, %always
  %begin = call i64 CLOCK()
  br i1 %share, label %ask, label %timed
timed:
  call void @"SEGMENT"(ptr %table, ptr null)
  call void @"SEGMENT.note"(ptr %serial.slot, i64 %begin)
  ret void
ask:
  %running = getelementptr i8, ptr %pool, i64 64
  %pair = cmpxchg ptr %running, i64 0, i64 1 acq_rel acquire
  %free = extractvalue { i64, i1 } %pair, 1
  br i1 %free, label %region, label %serial
region:
  store i64 0, ptr %team, align 8
  %table.slot = getelementptr i8, ptr %team, i64 192
  store ptr %table, ptr %table.slot, align 8
  %yield.from = getelementptr i8, ptr %pool, i64 16
  %yield = load ptr, ptr %yield.from, align 8
  %yield.slot = getelementptr i8, ptr %team, i64 200
  store ptr %yield, ptr %yield.slot, align 8
  store i64 0, ptr %args, align 8
  store i64 %threads, ptr %dimensions, align 8
  store i64 1, ptr %steps, align 8
  %threads.32 = trunc i64 %threads to i32
  call void %start(ptr @"SEGMENT.worker", ptr %args, ptr %dimensions, ptr %steps, ptr %team, i64 0, i64 1, i32 %threads.32)
  store atomic i64 0, ptr %running release, align 8
  call void @"SEGMENT.note"(ptr @"SEGMENT.state", i64 %begin)
  ret void
serial:
  call void @"SEGMENT"(ptr %table, ptr null)
  ret void
}
"""

# How a waiting thread spares its neighbour, and a clock. (ARM's cycle counter is closed to user programs.)
_X86 = "@llvm.x86.sse2.pause()", "", "@llvm.readcyclecounter"
_ARM = "@llvm.aarch64.hint(i32 1)", "i32", "@llvm.readsteadycounter"
_MACHINES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}


def _machine() -> tuple[str, str, str, str]:
    """Pausing, its declaration, the clock, its declaration."""
    known = _MACHINES.get(platform.machine().lower())
    if known is None:
        return "", "", "@llvm.readcyclecounter", "declare i64 @llvm.readcyclecounter()"
    call, parameters, clock = known
    declaration = f"declare void {call.split('(')[0]}({parameters})"
    return f"call void {call}", declaration, clock, f"declare i64 {clock}()"


def clock() -> tuple[str, str]:
    """The intrinsic that reads the machine's clock, and its declaration (which `common_text` has too)."""
    return _machine()[2:]


_elsewhere = ir.Module("team", context=ir.Context())
run = ir.Function(_elsewhere, ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, I64]), "team.run")


def enter(segment: str) -> ir.Function:
    """`SEGMENT.enter`: runs the segment on all threads if that is possible now, on the calling one otherwise."""
    return ir.Function(ir.Module("segment", context=ir.Context()), SEGMENT, f"{segment}.enter")


def common_text() -> str:
    """The functions that every program with shared work needs. (`run` stands for one of them in calls.)"""
    pause, declaration, _, clock = _machine()
    return "\n".join([_COMMON.replace("PAUSE", pause), declaration, clock])


def segment_text(segment: str, pool_slot: int, pieces: int) -> str:
    """`enter(segment)`; no task of the segment has more than `pieces` pieces."""
    text = _SEGMENT.replace("SEGMENT", segment).replace("POOL", str(8 * pool_slot))
    return text.replace("PIECES", str(pieces)).replace("CLOCK", _machine()[2])
