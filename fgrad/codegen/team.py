"""How the threads of one running program share its work, as LLVM IR that is linked into programs that need it.

Helper threads (`runtime.threads` starts them once) look at one word of memory, the pool's. A program that runs a stretch of native
code (a segment) with enough to share takes the pool, and hands out tasks, functions `void task(ptr frame, i64 piece, i64 worker)` to
be run for every piece. The caller is worker 0:

    caller                                    helpers
    task, frame -> pool                       look at `word` (a while; then they sleep) until there are pieces
    word = (epoch + 1, pieces, next 0)  --->  take a piece by compare-and-swap on `word`, run it, done += 1
    wakes those who sleep
    takes pieces as well
    waits until done = pieces

The epoch in `word` makes a late compare-and-swap fail, and the pool's memory is never freed; so a helper need not be told that a
segment ends, and the caller waits for nobody but those who have taken a piece. (A region of an OpenMP library ends when each of its
threads has come; on a busy machine that is when the system gets round to starting them, milliseconds later.)

On a machine where others want the processors too, a thread that has taken a piece may be put to sleep for milliseconds, and sharing is
then slower than one thread. So each segment notes the time of its runs of both kinds (the first eight are of either kind by turns) and
takes the faster; every 128th run is of the other, every 16th where that is to share, since a neighbour that was in the way may have gone.

Only one caller has the pool at a time: others run serially meanwhile, with the same results.
"""

from __future__ import annotations

import platform

from llvmlite import ir

POINTER, I64 = ir.PointerType(), ir.IntType(64)
TASK = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64])
SEGMENT = ir.FunctionType(ir.VoidType(), [POINTER, POINTER])

# Byte offsets in the pool. How many helpers there are, how many threads may work, functions to give the processor away, to wait for
# the semaphore and to raise it, the semaphore, and whether to share without asking what is faster (for tests) ...
HELPERS, THREADS, YIELD, WAIT, POST, SEMAPHORE, ALWAYS = range(0, 56, 8)
# ... and, in cache lines of their own, whether a caller has the pool, the word, finished pieces, the task, and helpers asleep.
RUNNING, WORD, DONE, TASK_AT, FRAME_AT, ASLEEP, POOL_BYTES = 64, 128, 192, 256, 264, 320, 384
_LOOKS = 4000  # before a helper sleeps: some 100 microseconds

_PAUSE = """
define internal void @"team.pause"(ptr %pool, i64 %waited) nounwind {
entry:
  PAUSE
  %long = icmp ugt i64 %waited, 1000
  br i1 %long, label %give, label %done
give:
  %slot = getelementptr i8, ptr %pool, i64 {YIELD}
  %yield = load ptr, ptr %slot, align 8
  %none = icmp eq ptr %yield, null
  br i1 %none, label %done, label %call
call:
  %ignored = call i32 %yield()
  br label %done
done:
  ret void
}

define internal void @"team.work"(ptr %pool, i64 %worker) noinline nounwind {
entry:
  %at = getelementptr i8, ptr %pool, i64 {WORD}
  br label %look
look:
  %word = load atomic i64, ptr %at acquire, align 8
  %piece = and i64 %word, 65535
  %above = lshr i64 %word, 16
  %pieces = and i64 %above, 65535
  %some = icmp ult i64 %piece, %pieces
  %mine = icmp ult i64 %worker, %pieces
  %go = and i1 %some, %mine
  br i1 %go, label %take, label %done
take:
  %following = add i64 %word, 1
  %pair = cmpxchg ptr %at, i64 %word, i64 %following acq_rel acquire
  %got = extractvalue { i64, i1 } %pair, 1
  br i1 %got, label %run, label %look
run:
  %task.slot = getelementptr i8, ptr %pool, i64 {TASK_AT}
  %task = load ptr, ptr %task.slot, align 8
  %frame.slot = getelementptr i8, ptr %pool, i64 {FRAME_AT}
  %frame = load ptr, ptr %frame.slot, align 8
  call void %task(ptr %frame, i64 %piece, i64 %worker)
  %count = getelementptr i8, ptr %pool, i64 {DONE}
  %old = atomicrmw add ptr %count, i64 1 acq_rel
  br label %look
done:
  ret void
}
"""

_RUN = """
define internal void @"team.wake"(ptr %pool, i64 %asleep) noinline nounwind {
entry:
  %slot = getelementptr i8, ptr %pool, i64 {ASLEEP}
  %all = atomicrmw xchg ptr %slot, i64 0 acq_rel
  %post.slot = getelementptr i8, ptr %pool, i64 {POST}
  %post = load ptr, ptr %post.slot, align 8
  %semaphore.slot = getelementptr i8, ptr %pool, i64 {SEMAPHORE}
  %semaphore = load ptr, ptr %semaphore.slot, align 8
  br label %look
look:
  %n = phi i64 [ %all, %entry ], [ %less, %raise ]
  %none = icmp eq i64 %n, 0
  br i1 %none, label %done, label %raise
raise:
  %ignored = call i32 %post(ptr %semaphore, i64 1, ptr null)
  %less = sub i64 %n, 1
  br label %look
done:
  ret void
}

define internal void @"team.run"(ptr %pool, ptr %task, ptr %frame, i64 %pieces) noinline nounwind {
entry:
  %alone = icmp eq ptr %pool, null
  br i1 %alone, label %serial, label %publish
serial:
  %n = phi i64 [ 0, %entry ], [ %n.next, %serial ]
  call void %task(ptr %frame, i64 %n, i64 0)
  %n.next = add i64 %n, 1
  %n.more = icmp ult i64 %n.next, %pieces
  br i1 %n.more, label %serial, label %done
publish:
  %task.slot = getelementptr i8, ptr %pool, i64 {TASK_AT}
  store ptr %task, ptr %task.slot, align 8
  %frame.slot = getelementptr i8, ptr %pool, i64 {FRAME_AT}
  store ptr %frame, ptr %frame.slot, align 8
  %count = getelementptr i8, ptr %pool, i64 {DONE}
  store atomic i64 0, ptr %count monotonic, align 8
  %at = getelementptr i8, ptr %pool, i64 {WORD}
  %old = load atomic i64, ptr %at monotonic, align 8
  %epoch = lshr i64 %old, 32
  %epoch.next = add i64 %epoch, 1
  %high = shl i64 %epoch.next, 32
  %low = shl i64 %pieces, 16
  %word = or i64 %high, %low
  store atomic i64 %word, ptr %at seq_cst, align 8
  %asleep.slot = getelementptr i8, ptr %pool, i64 {ASLEEP}
  %asleep = load atomic i64, ptr %asleep.slot seq_cst, align 8
  %all.awake = icmp eq i64 %asleep, 0
  br i1 %all.awake, label %work, label %wake
wake:
  call void @"team.wake"(ptr %pool, i64 %asleep)
  br label %work
work:
  call void @"team.work"(ptr %pool, i64 0)
  br label %look
look:
  %waited = phi i64 [ 0, %work ], [ %more, %wait ]
  %ready = load atomic i64, ptr %count acquire, align 8
  %all = icmp eq i64 %ready, %pieces
  br i1 %all, label %done, label %wait
wait:
  %more = add i64 %waited, 1
  call void @"team.pause"(ptr %pool, i64 %waited)
  br label %look
done:
  ret void
}
"""

_HELP = """
define void @"help"(ptr %pool, i64 %worker) nounwind {
entry:
  %at = getelementptr i8, ptr %pool, i64 {WORD}
  %threads.slot = getelementptr i8, ptr %pool, i64 {THREADS}
  %asleep.slot = getelementptr i8, ptr %pool, i64 {ASLEEP}
  br label %look
look:
  %waited = phi i64 [ 0, %entry ], [ 0, %work ], [ %more, %wait ], [ 0, %claimed ], [ 0, %woken ]
  %word = load atomic i64, ptr %at acquire, align 8
  %threads = load atomic i64, ptr %threads.slot monotonic, align 8
  %go = call i1 @"wanted"(i64 %word, i64 %worker, i64 %threads)
  br i1 %go, label %work, label %idle
work:
  call void @"team.work"(ptr %pool, i64 %worker)
  br label %look
idle:
  %more = add i64 %waited, 1
  %enough = icmp ugt i64 %more, {LOOKS}
  %useless = icmp uge i64 %worker, %threads
  %tired = or i1 %enough, %useless
  br i1 %tired, label %sleep, label %wait
wait:
  call void @"team.pause"(ptr %pool, i64 0)
  br label %look
sleep:
  %before = atomicrmw add ptr %asleep.slot, i64 1 seq_cst
  %again = load atomic i64, ptr %at seq_cst, align 8
  %late = call i1 @"wanted"(i64 %again, i64 %worker, i64 %threads)
  br i1 %late, label %rise, label %down
rise:
  %count = load atomic i64, ptr %asleep.slot monotonic, align 8
  %counted = icmp ne i64 %count, 0
  br i1 %counted, label %try, label %down
try:
  %less = sub i64 %count, 1
  %pair = cmpxchg ptr %asleep.slot, i64 %count, i64 %less acq_rel monotonic
  %out = extractvalue { i64, i1 } %pair, 1
  br i1 %out, label %claimed, label %rise
claimed:
  br label %look
down:
  %wait.slot = getelementptr i8, ptr %pool, i64 {WAIT}
  %function = load ptr, ptr %wait.slot, align 8
  %semaphore.slot = getelementptr i8, ptr %pool, i64 {SEMAPHORE}
  %semaphore = load ptr, ptr %semaphore.slot, align 8
  %failed = call i32 %function(ptr %semaphore, i64 -1)
  %interrupted = icmp slt i32 %failed, 0
  br i1 %interrupted, label %down, label %woken
woken:
  br label %look
}

define internal i1 @"wanted"(i64 %word, i64 %worker, i64 %threads) alwaysinline nounwind {
  %piece = and i64 %word, 65535
  %above = lshr i64 %word, 16
  %pieces = and i64 %above, 65535
  %some = icmp ult i64 %piece, %pieces
  %mine = icmp ult i64 %worker, %pieces
  %allowed = icmp ult i64 %worker, %threads
  %both = and i1 %some, %mine
  %go = and i1 %both, %allowed
  ret i1 %go
}
"""

_SEGMENT = """
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
  %pool.slot = getelementptr i8, ptr %table, i64 POOL
  %pool = load ptr, ptr %pool.slot, align 8
  %none = icmp eq ptr %pool, null
  br i1 %none, label %serial, label %known
known:
  %helpers.slot = getelementptr i8, ptr %pool, i64 {HELPERS}
  %helpers = load i64, ptr %helpers.slot, align 8
  %threads.slot = getelementptr i8, ptr %pool, i64 {THREADS}
  %threads = load i64, ptr %threads.slot, align 8
  %off = icmp eq i64 %helpers, 0
  %one = icmp ult i64 %threads, 2
  %stay = or i1 %off, %one
  br i1 %stay, label %serial, label %choose
choose:
  %serial.slot = getelementptr i8, ptr @"SEGMENT.state", i64 8
  %calls.slot = getelementptr i8, ptr @"SEGMENT.state", i64 16
  %shared.time = load atomic i64, ptr @"SEGMENT.state" monotonic, align 8
  %serial.time = load atomic i64, ptr %serial.slot monotonic, align 8
  %calls = atomicrmw add ptr %calls.slot, i64 1 monotonic
  %faster = icmp ule i64 %shared.time, %serial.time
  %often = select i1 %faster, i64 127, i64 15
  %phase = and i64 %calls, %often
  %probe = icmp eq i64 %phase, %often
  %better = xor i1 %faster, %probe
  %early = icmp ult i64 %calls, 8
  %even = trunc i64 %calls to i1
  %chosen = select i1 %early, i1 %even, i1 %better
  %always.slot = getelementptr i8, ptr %pool, i64 {ALWAYS}
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
  %running = getelementptr i8, ptr %pool, i64 {RUNNING}
  %pair = cmpxchg ptr %running, i64 0, i64 1 acq_rel acquire
  %free = extractvalue { i64, i1 } %pair, 1
  br i1 %free, label %shared, label %serial
shared:
  call void @"SEGMENT"(ptr %table, ptr %pool)
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


def _filled(text: str) -> str:
    for name in [
        "HELPERS",
        "THREADS",
        "YIELD",
        "WAIT",
        "POST",
        "SEMAPHORE",
        "ALWAYS",
        "RUNNING",
        "WORD",
        "DONE",
        "TASK_AT",
        "FRAME_AT",
        "ASLEEP",
    ]:
        text = text.replace(f"{{{name}}}", str(globals()[name]))
    return text.replace("{LOOKS}", str(_LOOKS)).replace("PAUSE", _machine()[0])


def common_text() -> str:
    """The functions that every program with shared work needs. (`run` stands for one of them in calls.)"""
    _, declaration, _, clock = _machine()
    return "\n".join([_filled(_PAUSE + _RUN), declaration, clock])


def help_text() -> str:
    """A module that exports `void help(ptr pool, i64 worker)`, in which a helper thread spends its life."""
    return "\n".join([_filled(_PAUSE + _HELP), _machine()[1]])


def segment_text(segment: str, pool_slot: int) -> str:
    """`enter(segment)`."""
    text = _filled(_SEGMENT).replace("SEGMENT", segment).replace("POOL", str(8 * pool_slot))
    return text.replace("CLOCK", _machine()[2])
