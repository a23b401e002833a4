// Which rows exist, what they say, the lanes of the timeline, and the line to the kernel.
import assert from "node:assert/strict";
import { test } from "node:test";
import { KernelLine } from "../../arrea_nb/notebook/static/line.js";
import { outcome, range, remark, swing, TICK } from "../../arrea_nb/notebook/static/rows.js";
import { Job } from "../../arrea_nb/notebook/static/state.js";
import { lanes } from "../../arrea_nb/notebook/static/timeline.js";

const job = (fields) => Object.assign(new Job(0), fields);

test("only the rows that can be seen exist, with a few around them", () => {
  assert.deepEqual(range(0, 240, 24, 10_000), [0, 14]);
  assert.deepEqual(range(2400, 240, 24, 10_000), [96, 114]);
  assert.deepEqual(range(239_760, 240, 24, 10_000), [9986, 10_000]);
  assert.deepEqual(range(0, 240, 24, 3), [0, 3]);
  assert.deepEqual(range(0, 240, 24, 0), [0, 0]);
  assert.deepEqual(range(9_999, 240, 24, 5), [4, 5]);
});

test("a bar of unknown length goes from one side to the other and back, a step at a time", () => {
  const stands = Array.from({ length: 17 }, (_, step) => swing(step * TICK));
  assert.deepEqual([stands[0], stands[4], stands[8], stands[12], stands[16]], [0, 0.5, 1, 0.5, 0]);
  assert.equal(swing(TICK - 1), 0);
});

test("what a row says of how it ended, or when it goes on", () => {
  const failed = (error) => outcome(job({ state: "failed", more: { error } }), 1, 0);
  assert.equal(failed("exit 1: no such file"), "exit 1");
  assert.equal(failed("ValueError: a long story: with colons"), "ValueError");
  assert.equal(failed("an error of its own kind, told at length"), "failed");
  assert.equal(outcome(job({ state: "timed_out", more: { error: "x" } }), 1, 0), "timed out");
  const waiting = job({ state: "waiting", attempt: 1, more: { due: 4.9 }, at: 0 });
  assert.equal(outcome(waiting, 3, 0), "again in 4 s (2 of 3)");
  assert.equal(outcome(waiting, 3, 3_000), "again in 1.9 s (2 of 3)");
  assert.equal(outcome(waiting, 3, 9_000), "again now (2 of 3)");
  assert.equal(outcome(job({ state: "running" }), 1, 0), "");
});

test("the last column: why it failed, else the message, else the last line", () => {
  const says = (fields) => remark(job({ line: "printed", ...fields }));
  assert.equal(says({ state: "failed", more: { error: "exit 1: no such file" } }), "no such file");
  assert.equal(says({ state: "failed", more: { error: "exit 1" } }), "printed");
  assert.equal(says({ state: "waiting", more: { error: "exit 7: refused" } }), "refused");
  assert.equal(says({ state: "timed_out", more: { error: "timed out after 30 s" } }), "printed");
  assert.equal(
    says({ state: "timed_out", line: "", more: { error: "timed out after 30 s" } }),
    "timed out after 30 s",
  );
  assert.equal(says({ state: "running", more: { message: "epoch 3" } }), "epoch 3");
  assert.equal(says({ state: "running" }), "printed");
});

test("a skipped job says so where others say how they ended, and not twice", () => {
  const skipped = job({ state: "skipped", more: { error: "skipped: job 0 failed" } });
  assert.equal(outcome(skipped, 1, 0), "skipped");
  assert.equal(remark(skipped), "");
});

test("while the policy is asked, a running job says so and its clock stands", () => {
  const more = { asking: true, message: "epoch 3", error: "exit 1: refused" };
  const asking = job({ state: "running", took: 2.5, line: "printed", more });
  assert.equal(remark(asking), "asking the policy");
  assert.equal(asking.elapsed(60_000), 2.5);
  const retried = job({ state: "running", took: 0, line: "printed", more: {} });
  assert.equal(remark(retried), "printed");
  assert.equal(retried.elapsed(60_000), 60);
  assert.equal(remark(job({ state: "failed", line: "printed", more })), "refused");
});

test("each attempt is on the first lane that is free", () => {
  const { placed, count } = lanes([
    [0, 2, "failed", "a"],
    [2.001, null, "running", "d"],
    [0, 5, "succeeded", "b"],
    [1, 3, "succeeded", "c"],
    [6, null, "running", "e"],
  ]);
  assert.equal(count, 3);
  assert.deepEqual(
    placed.map(({ attempt, lane }) => [attempt[3], lane]),
    [
      ["a", 0],
      ["b", 1],
      ["c", 2],
      ["d", 0],
      ["e", 1],
    ],
  );
  assert.deepEqual(lanes([]), { placed: [], count: 0 });
});

class Kernel {
  constructor() {
    this.now = 0;
    this.sent = [];
    this.line = new KernelLine(
      (message) => this.sent.push(message),
      "me",
      () => {},
      () => this.now,
    );
  }

  kinds() {
    return this.sent.splice(0).map((message) => message.ref || message.kind);
  }
}

test("hello is said until the picture comes, and again when a frame is missing", () => {
  const kernel = new Kernel();
  const { line } = kernel;
  line.greet();
  kernel.now = 500;
  line.tick(true);
  assert.deepEqual(kernel.kinds(), ["hello"]);
  kernel.now = 1200;
  line.tick(true);
  assert.deepEqual(kernel.kinds(), ["hello"]);
  assert.ok(!line.accept({ kind: "frame", number: 3 }));
  assert.ok(line.accept({ kind: "picture", number: 4 }));
  assert.ok(line.accept({ kind: "frame", number: 5 }));
  kernel.now = 3000;
  assert.ok(!line.accept({ kind: "frame", number: 7 }));
  assert.deepEqual(kernel.kinds(), ["hello"]);
});

test("a command is sent again with its ref until it is acknowledged, and is asked once", () => {
  const kernel = new Kernel();
  const { line } = kernel;
  line.ask("cancel", { job: 1 }, "cancel 1");
  line.ask("cancel", { job: 1 }, "cancel 1");
  kernel.now = 800;
  line.tick(true);
  assert.deepEqual(
    kernel.kinds().filter((kind) => kind !== "hello"),
    ["me-1", "me-1"],
  );
  kernel.now = 1100;
  assert.ok(line.impatient());
  assert.equal(line.pending("cancel 1"), 1100);
  line.acknowledged({ ref: "me-1", error: "no such job" });
  assert.equal(line.pending("cancel 1"), 0);
  assert.equal(line.error, "no such job");
});

test("a command is sent again at its interval and not on every tick, until it is known", () => {
  const kernel = new Kernel();
  const { line } = kernel;
  line.accept({ kind: "picture", number: 1 });
  line.ask("cancel", { job: 1 }, "cancel 1");
  const sent = [];
  for (kernel.now = 0; kernel.now < 2_500; kernel.now += TICK) {
    line.tick(true);
    for (const kind of kernel.kinds()) sent.push([kernel.now, kind]);
  }
  assert.deepEqual(sent, [
    [0, "me-1"],
    [750, "me-1"],
    [1500, "me-1"],
    [2250, "me-1"],
  ]);
  line.acknowledged({ ref: "me-1" });
  kernel.now += 5_000;
  line.tick(true);
  assert.deepEqual(kernel.kinds(), []);
});

test("a kernel is not lost that has not sent its first picture yet", () => {
  const kernel = new Kernel();
  kernel.now = 60_000;
  assert.ok(!kernel.line.lost(true));
});

test("a kernel that comes back is not lost any more, and is spoken to again", () => {
  const kernel = new Kernel();
  const { line } = kernel;
  line.accept({ kind: "picture", number: 1 });
  const { post } = line;
  line.post = () => {
    throw new Error("closed");
  };
  line.doubt();
  assert.ok(line.lost(true));
  line.post = post;
  assert.ok(line.accept({ kind: "frame", number: 2 }));
  assert.ok(!line.lost(true));
  line.ask("cancel_all", {}, "cancel_all");
  assert.deepEqual(kernel.kinds(), ["me-1"]);
});

test("in doubt the kernel is asked at once, however shortly after the last hello", () => {
  const kernel = new Kernel();
  const { line } = kernel;
  line.greet();
  line.accept({ kind: "picture", number: 1 });
  kernel.now = 100;
  line.greet();
  assert.deepEqual(kernel.kinds(), ["hello"]);
  line.doubt();
  assert.deepEqual(kernel.kinds(), ["hello"]);
});

test("a kernel that is silent too long is lost, and one whose comm is closed at once", () => {
  const kernel = new Kernel();
  const { line } = kernel;
  line.accept({ kind: "picture", number: 1 });
  kernel.now = 7000;
  line.tick(true);
  assert.deepEqual(kernel.kinds(), ["hello"]);
  assert.ok(!line.lost(true));
  kernel.now = 12_500;
  assert.ok(line.lost(true));
  assert.ok(!line.lost(false));
  line.accept({ kind: "frame", number: 2 });
  assert.ok(!line.lost(true));
  line.post = () => {
    throw new Error("closed");
  };
  line.doubt();
  assert.ok(line.lost(true));
});
