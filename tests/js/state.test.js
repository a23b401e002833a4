// The picture, the frames after it, and which jobs are to be seen.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Output, State } from "../../arrea_nb/notebook/static/state.js";

const STATES = ["queued", "running", "waiting", "succeeded", "failed", "timed_out", "cancelled", "skipped"];
const batch = (counts, more = {}) => ({
  state: "running",
  workers: 2,
  timeout: 30,
  tries: 1,
  elapsed: 1,
  eta: null,
  counts,
  ...more,
});

function began(names, jobs = [], output = [], counts = { queued: names.length }) {
  const state = new State();
  const picture = {
    kind: "picture",
    total: names.length,
    states: STATES,
    names: [0, names],
    jobs,
    output,
    batch: batch(counts),
  };
  state.merge(picture, 0);
  return state;
}

const frame = (jobs, output = [], more = {}) => ({ kind: "frame", batch: batch({}), jobs, output, ...more });

test("a job that is not told is queued, and a frame changes what it names", () => {
  const state = began(["a", "b", "c"], [[1, 1, 1, 0.5, 0.1]]);
  assert.deepEqual(
    state.jobs.map((job) => job.state),
    ["queued", "running", "queued"],
  );
  const changed = state.merge(frame([[2, 4, 1, 0.6, 0.2, { error: "exit 1" }]]), 100);
  assert.deepEqual([...changed], [2]);
  assert.equal(state.jobs[2].more.error, "exit 1");
  assert.equal(state.jobs[1].elapsed(1000), 1.1);
  assert.equal(state.jobs[2].elapsed(9000), 0.2);
});

test("names of a large batch come in pieces", () => {
  const state = began([]);
  state.merge(
    { kind: "picture", total: 3, states: STATES, names: [0, ["a"]], jobs: [], output: [], batch: batch({}) },
    0,
  );
  assert.deepEqual(
    state.jobs.map((job) => job.name),
    ["a", "", ""],
  );
  state.merge(frame([], [], { names: [1, ["b", "c\nd"]] }), 0);
  assert.deepEqual(
    state.jobs.map((job) => job.name),
    ["a", "b", "c d"],
  );
});

test("output belongs to its attempt", () => {
  const state = began(["a"], [[0, 1, 1, 0, 0]], [[0, 1, 0, [[0, "one\n"]]]]);
  const [job] = state.jobs;
  state.merge(frame([], [[0, 1, 0, [[1, "two"]]]]), 0);
  assert.equal(job.line, "two");
  assert.deepEqual(job.output.head, [
    [0, "one\n"],
    [1, "two"],
  ]);
  state.merge(frame([[0, 1, 2, 1, 0]]), 0);
  assert.deepEqual([job.output, job.line], [null, ""]);
  state.merge(frame([], [[0, 1, 0, [[0, "late"]]]]), 0);
  assert.equal(job.output, null);
  state.merge(frame([], [[0, 2, 0, [[0, "again"]]]]), 0);
  assert.deepEqual(job.output.head, [[0, "again"]]);
  state.merge(frame([], [[0, 1, 0, [[0, "later still"]]]]), 0);
  assert.deepEqual(job.output.head, [[0, "again"]]);
  assert.equal(job.line, "again");
});

const picture = (names, jobs, output) => ({
  kind: "picture",
  total: names.length,
  states: STATES,
  names: [0, names],
  jobs,
  output,
  batch: batch({}),
});

/** All that is known of what a job printed. */
const known = ({ output }) => [...output.head, ...output.tail].map(([, text]) => text).join("");

test("another picture goes over what is known: the same jobs, the same output", () => {
  const row = [0, 3, 1, 0, 1];
  const state = began(["a", "b", "c"], [row, [1, 1, 1, 0, 1]], [[0, 1, 0, [[0, "x"]]]]);
  const [...jobs] = state.jobs;
  const { output } = jobs[0];
  state.merge(picture(["a", "b", "c"], [row], [[0, 1, 0, [[0, "x"]]]]), 0);
  assert.deepEqual(state.jobs, jobs);
  assert.ok(state.jobs.every((job, at) => job === jobs[at]));
  // The row of the second did not fit into this one.
  assert.deepEqual(
    jobs.map((job) => job.state),
    ["succeeded", "running", "queued"],
  );
  assert.equal(jobs[0].output, output);
  assert.equal(known(jobs[0]), "x");
  assert.equal(state.kept, 1);
});

test("of output that is told once more, what is new is added and heard alone", () => {
  const state = began(["a"], [[0, 1, 1, 0, 0]], [[0, 1, 0, [[0, "one\nzwölf"]]]]);
  const [job] = state.jobs;
  const heard = [];
  job.output.listener = (pieces, skipped) => heard.push([skipped, pieces]);
  state.merge(picture(["a"], [], []), 0);
  state.merge(
    frame(
      [],
      [
        [
          0,
          1,
          0,
          [
            [0, "one\n"],
            [0, "zwölf und drei"],
            [1, "bad"],
          ],
        ],
      ],
    ),
    0,
  );
  state.merge(frame([], [[0, 1, 0, [[0, "\nvier"]]]]), 0);
  assert.equal(known(job), "one\nzwölf und dreibad\nvier");
  assert.deepEqual(heard, [
    [
      0,
      [
        [0, " und drei"],
        [1, "bad"],
      ],
    ],
    [0, [[0, "\nvier"]]],
  ]);
});

test("what is known stays although a later picture leaves it out", () => {
  const state = began(["a"], [[0, 1, 1, 0, 0]], [[0, 1, 0, [[0, "0123456789"]]]]);
  const [job] = state.jobs;
  const heard = [];
  job.output.listener = (pieces, skipped) => heard.push([skipped, pieces]);
  state.merge(
    picture(
      ["a"],
      [],
      [
        [0, 1, 0, [[0, "01"]]],
        [0, 1, 6, [[0, "89ab"]]],
      ],
    ),
    0,
  );
  assert.equal(known(job), "0123456789ab");
  state.merge(
    picture(
      ["a"],
      [],
      [
        [0, 1, 0, [[0, "01"]]],
        [0, 1, 18, [[0, "klm"]]],
      ],
    ),
    0,
  );
  state.merge(frame([], [[0, 1, 0, [[0, "n"]]]]), 0);
  assert.deepEqual(heard, [
    [0, [[0, "ab"]]],
    [8, [[0, "klm"]]],
    [0, [[0, "n"]]],
  ]);
});

test("after another picture a new attempt has its own output", () => {
  const state = began(["a"], [[0, 1, 1, 0, 0]], [[0, 1, 0, [[0, "first"]]]]);
  const [job] = state.jobs;
  state.merge(picture(["a"], [[0, 1, 2, 3, 0]], [[0, 1, 0, [[0, "first of the second"]]]]), 0);
  assert.equal(known(job), "first of the second");
});

test("output with bytes that are no text cannot be counted, and begins anew with another picture", () => {
  const state = began(["a"], [[0, 1, 1, 0, 0]], [[0, 1, 0, [[0, "\ufffd\ufffdabc"]]]]);
  const [job] = state.jobs;
  state.merge(picture(["a"], [], [[0, 1, 0, [[0, "\ufffd\ufffdabcdef"]]]]), 0);
  assert.equal(known(job), "\ufffd\ufffdabcdef");
});

test("much output is bounded, for each job and for all, and what is dropped is counted", () => {
  const output = new Output();
  for (let at = 0; at < 100; at++) output.add([[0, "x".repeat(10_000)]], 0);
  assert.ok(output.headSize + output.size <= 220_000);
  assert.equal(output.headSize + output.size + output.skipped, 1_000_000);
  const state = began(Array(400).fill("job"));
  for (let job = 0; job < 400; job++) state.merge(frame([], [[job, 1, 0, [[0, "y".repeat(200_000)]]]]), 0);
  assert.ok(state.kept <= 32_000_000);
  assert.equal(state.jobs[399].output.size, 184_000);
  assert.equal(state.jobs[0].output.size, 2_000);
});

test("output that was skipped lies between the beginning and the end", () => {
  const output = new Output();
  output.add([[0, "head"]], 0);
  output.add([[0, "tail"]], 1_000);
  assert.deepEqual([output.head, output.skipped, output.tail], [[[0, "head"]], 1_000, [[0, "tail"]]]);
  output.add([[0, "end"]], 500);
  assert.deepEqual([output.head, output.skipped, output.tail], [[[0, "head"]], 1_504, [[0, "end"]]]);
});

test("filter, search and sort", () => {
  const state = began(
    ["b 10", "b 9", "a <i>", "c"],
    [
      [0, 3, 1, 0, 5],
      [1, 4, 1, 0, 1],
      [2, 1, 1, 0, 2],
      [3, 5, 1, 0, 9],
    ],
    [],
    { succeeded: 1, failed: 1, running: 1, timed_out: 1 },
  );
  const seen = (look) => state.seen({ filter: "all", search: "", sort: "given", ...look }, 0);
  assert.equal(seen({}), null);
  assert.deepEqual(seen({ filter: "failed" }), [1, 3]);
  assert.deepEqual(seen({ filter: "running" }), [2]);
  assert.deepEqual(seen({ search: "B" }), [0, 1]);
  assert.deepEqual(seen({ search: "<I>" }), [2]);
  assert.deepEqual(seen({ sort: "name" }), [2, 1, 0, 3]);
  assert.deepEqual(seen({ sort: "duration" }), [3, 0, 2, 1]);
  assert.deepEqual(seen({ sort: "state" }), [1, 3, 2, 0]);
  assert.deepEqual(seen({ filter: "failed", sort: "duration" }), [3, 1]);
  assert.deepEqual(state.tally(), { all: 4, ended: 3, running: 1, failed: 2 });
});

test("by duration, jobs that have not begun come last", () => {
  const state = began(
    ["queued", "short", "queued too", "long"],
    [
      [1, 3, 1, 0, 0],
      [3, 1, 1, 0, 2],
    ],
  );
  assert.deepEqual(state.seen({ filter: "all", search: "", sort: "duration" }, 0), [3, 1, 0, 2]);
});

test("a skipped job has ended and has not failed", () => {
  const counts = { skipped: 2, failed: 1 };
  const skipped = [7, 0, null, null, { error: "skipped: job 0 failed" }];
  const state = began(
    ["a", "b", "c"],
    [
      [0, 4, 1, 0, 1],
      [1, ...skipped],
      [2, ...skipped],
    ],
    [],
    counts,
  );
  assert.deepEqual(state.tally(), { all: 3, ended: 3, running: 0, failed: 1 });
  assert.deepEqual(state.seen({ filter: "failed", search: "", sort: "given" }, 0), [0]);
});

test("attempts of a job, for the timeline, and when the next is due", () => {
  const state = began(["a"], [[0, 2, 1, null, null, { due: 2, past: [[0, 1.5, "failed"]] }]]);
  const [job] = state.jobs;
  assert.deepEqual(job.attempts(), [[0, 1.5, "failed"]]);
  assert.equal(job.due(500), 1.5);
  state.merge(frame([[0, 1, 2, 3, 0.2, { past: [[0, 1.5, "failed"]] }]]), 0);
  assert.deepEqual(job.attempts(), [
    [0, 1.5, "failed"],
    [3, null, "running"],
  ]);
  state.merge(frame([[0, 3, 2, 3, 4.5, { past: [[0, 1.5, "failed"]] }]]), 0);
  assert.deepEqual(job.attempts(), [
    [0, 1.5, "failed"],
    [3, 4.5, "succeeded"],
  ]);
});
