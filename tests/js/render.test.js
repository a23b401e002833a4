// The view as a whole, on a page without a browser: what it does with what the kernel sends.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import view from "../../arrea_nb/notebook/static/view.js";
import { page, paint } from "./page.js";

const STATES = ["queued", "running", "waiting", "succeeded", "failed", "timed_out", "cancelled", "skipped"];
const BATCH = {
  state: "running",
  workers: 2,
  timeout: null,
  tries: 2,
  elapsed: 1,
  eta: null,
  counts: { running: 2 },
};

/** One model, as every view of a batch has it: all of them hear all that the kernel sends. */
class Model {
  constructor() {
    this.listeners = new Set();
    this.sent = [];
    this.number = 0;
    this.rendered = [];
  }

  get() {
    return "batch";
  }

  on(kind, heard) {
    if (kind === "msg:custom") this.listeners.add(heard);
  }

  off(_, heard) {
    this.listeners.delete(heard);
  }

  send(message) {
    this.sent.push(message);
  }

  render() {
    const el = page();
    this.rendered.push(view.render({ model: this, el }));
    return el;
  }

  hear(kind, jobs, output = []) {
    const whole = { total: 2, states: STATES, names: [0, ["a", "b"]] };
    const message = { kind, number: ++this.number, batch: BATCH, jobs, output };
    for (const heard of this.listeners) heard(kind === "picture" ? { ...message, ...whole } : message);
    paint();
  }

  leave() {
    for (const left of this.rendered) left();
  }
}

let model;
afterEach(() => model.leave());

const RUNNING = [
  [0, 1, 1, 0, 0.5],
  [1, 1, 1, 0, 0.5],
];
const printed = (count) => Array.from({ length: count }, (_, at) => `line ${at}\n`).join("");
const timeline = (el) => !el.one("arrea-timeline-body").hidden;
const chosen = (el) => el.one("arrea-panel-title").textContent;
const lines = (el) => el.all("arrea-line").map((line) => line.textContent);

function toggleTimeline(el) {
  el.all("arrea-quiet")
    .find((node) => node.textContent === "timeline")
    .click();
}

test("a second view leaves the first as it is, and shares nothing with it", () => {
  model = new Model();
  const first = model.render();
  model.hear("picture", RUNNING, [[1, 1, 0, [[0, printed(100)]]]]);
  assert.ok(timeline(first));
  toggleTimeline(first);
  first.all("arrea-row")[1].click();
  paint();
  const panel = first.one("arrea-output");
  panel.scrollTop = 300;
  panel.listeners.scroll();
  const before = lines(first);
  assert.equal(before.length, 100);

  const second = model.render();
  model.hear("picture", RUNNING, [
    [1, 1, 0, [[0, printed(2)]]],
    [1, 1, printed(99).length - printed(2).length, [[0, "line 99\n"]]],
  ]);
  model.hear("frame", RUNNING, [[1, 1, 0, [[0, "new\n"]]]]);
  assert.deepEqual([timeline(first), chosen(first), panel.scrollTop], [false, "b", 300]);
  assert.deepEqual(lines(first).slice(0, 100), before);
  assert.equal(lines(first).at(-1), "new");
  assert.deepEqual([timeline(second), chosen(second)], [true, "a"]);

  toggleTimeline(second);
  toggleTimeline(first);
  assert.deepEqual([timeline(first), timeline(second)], [true, false]);
});

test("the panel shows the attempt that runs, and nothing of the one before", () => {
  model = new Model();
  const el = model.render();
  model.hear("picture", RUNNING, [[0, 1, 0, [[0, "of the first\n"]]]]);
  assert.deepEqual([chosen(el), lines(el)], ["a", ["of the first"]]);
  model.hear("frame", [[0, 1, 2, 1, 0]]);
  assert.deepEqual(lines(el), []);
  assert.match(el.one("arrea-output").textContent, /nothing printed/);
  model.hear("frame", [], [[0, 2, 0, [[0, "of the second\n"]]]]);
  assert.deepEqual(lines(el), ["of the second"]);
});

test("lines that the terminal dropped leave the panel", () => {
  model = new Model();
  const el = model.render();
  model.hear("picture", RUNNING, [[0, 1, 0, [[0, printed(2_300)]]]]);
  assert.equal(lines(el).length, 2_300);
  model.hear("frame", [], [[0, 1, 0, [[0, printed(200)]]]]);
  assert.ok(lines(el).length < 2_300);
  assert.equal(lines(el)[199], "line 199");
  assert.notEqual(lines(el)[200], "line 200");
});
