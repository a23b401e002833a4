// The table of jobs: only the rows that can be seen exist, however many jobs there are.
// Guarantees: every row has one height, so that nothing jumps; a row element serves one job after another, and
// never keeps the focus when it does. The grid has the focus itself: arrows, Page Up and Down, Home and End
// move, Enter and Space choose, Delete cancels.
import { attribute, element, SHAPES, say, worded } from "./dom.js";
import { IMPATIENT } from "./line.js";
import { LIVE } from "./state.js";
import { amount, lasted, oneLine, spoken } from "./text.js";

const OVERSCAN = 4;
const SHOWN = 12; // rows that have room without scrolling, as the style sheet says too
const UNKNOWN = 0.3; // of its room is what a bar of unknown length takes, as the style sheet says too
const SWING = 8; // steps that a bar of unknown length takes from one side to the other
export const TICK = 250; // ms, from one step to the next
const SHORT = 18; // characters of an error that have room beside the name

/** Which of `total` rows exist when so much can be seen, from the first to before the last. */
export function range(scrollTop, height, rowHeight, total) {
  const first = Math.max(0, Math.floor(scrollTop / rowHeight) - OVERSCAN);
  const last = Math.min(total, Math.ceil((scrollTop + height) / rowHeight) + OVERSCAN);
  return [Math.min(first, Math.max(0, total - 1)), last];
}

/**
 * Where a bar of unknown length stands, from 0 to 1 and back. It moves a few times a second, with the clock, since
 * each moment of a real animation is painted, and on a machine without a GPU that takes time from the jobs.
 */
export function swing(now) {
  return 1 - Math.abs((Math.floor(now / TICK) % (2 * SWING)) / SWING - 1);
}

// An error in two: what is short enough to stand beside the name, and the rest.
function divided(error) {
  const [, kind, rest] = /^([^:]+)(?:: (.*))?$/s.exec(oneLine(error)) || [];
  return kind && kind.length <= SHORT ? [kind, rest || ""] : ["", oneLine(error)];
}

/** What stands where a running job has its bar: how it ended, or when it goes on. */
export function outcome(job, tries, now) {
  const { state, more } = job;
  const due = job.due(now);
  if (due !== null) {
    const when = due < 0.05 ? "again now" : `again in ${spoken(due, due >= 3)}`;
    return tries > 1 ? `${when} (${job.attempt + 1} of ${tries})` : when;
  }
  if (state === "queued" || state === "running" || state === "succeeded") return "";
  return (state === "failed" && more.error && divided(more.error)[0]) || worded(state);
}

/** What its last column says: why it failed or is tried again; what it says itself; what it printed last. */
export function remark(job) {
  if (job.asking) return "asking the policy";
  const { error, message } = job.more;
  if (error && (job.state === "failed" || job.state === "waiting")) {
    const [kind, rest] = divided(error);
    if (rest || job.state === "waiting") return rest || job.line || kind;
  }
  return (
    (message && oneLine(message)) || job.line || (error && job.state !== "skipped" ? oneLine(error) : "")
  );
}

class Row {
  constructor(rows, id) {
    this.rows = rows;
    this.job = null;
    this.node = element("div", "arrea-row", { role: "row", id });
    const cell = (name, attributes = {}) => {
      const made = element("div", `arrea-cell arrea-${name}`, { role: "gridcell", ...attributes });
      this.node.append(made);
      return made;
    };
    const state = cell("state");
    this.shape = element("span", "arrea-shape", { "aria-hidden": "true" });
    this.state = element("span", "arrea-unseen");
    state.append(this.shape, this.state);
    const name = cell("name");
    this.name = element("bdi", "arrea-text");
    this.tries = element("span", "arrea-tries");
    name.append(this.name, this.tries);
    const how = cell("how");
    this.bar = element("div", "arrea-progress", {
      role: "progressbar",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
    });
    this.fill = element("div", "arrea-fill");
    this.bar.append(this.fill);
    this.how = element("span", "arrea-text");
    how.append(this.bar, this.how);
    this.time = cell("time");
    this.cpu = cell("cpu");
    this.memory = cell("memory");
    this.last = cell("last");
    this.lastText = element("bdi", "arrea-text");
    this.last.append(this.lastText);
    this.cancel = element("button", "arrea-cancel", { type: "button" });
    cell("act").append(this.cancel);
    this.cancel.addEventListener("click", (event) => {
      event.stopPropagation();
      rows.view.cancel(this.job.index);
    });
    this.node.addEventListener("click", () => rows.choose(this.at));
  }

  /** Shows a job at a place of the table. */
  place(job, at, height) {
    if (this.job !== job) {
      if (this.job && this.node.contains(document.activeElement)) this.rows.grid.focus();
      this.job = job;
      this.node.dataset.index = job.index;
    }
    this.at = at;
    this.height = height;
    attribute(this.node, "aria-rowindex", at + 1);
    this.node.style.transform = `translateY(${at * height}px)`;
    this.node.hidden = false;
  }

  draw(view) {
    const { job } = this;
    const { state, more } = job;
    attribute(this.node, "data-state", state);
    attribute(this.node, "aria-selected", view.chosen === job.index);
    say(this.shape, SHAPES[state] || "?");
    say(this.state, worded(state));
    say(this.name, job.name);
    attribute(this.node.children[1], "title", job.full);
    const { tries } = view.state.batch;
    say(this.tries, job.attempt > 1 && state !== "waiting" ? `${job.attempt} of ${tries}` : "");
    attribute(this.tries, "title", job.attempt > 1 ? `attempt ${job.attempt}` : null);
    this.drawBar(job);
    const busy = state === "running";
    say(this.cpu, busy && more.cpu !== undefined ? `${more.cpu} %` : "");
    say(this.memory, busy && more.memory !== undefined ? amount(more.memory) : "");
    const pending = view.line.pending(`cancel ${job.index}`);
    say(
      this.lastText,
      pending > IMPATIENT ? "cancel: waits for the cell" : pending ? "cancelling…" : remark(job),
    );
    const whole = [more.error, more.note, more.message, job.line].filter(Boolean);
    attribute(this.last, "title", whole.length ? whole.map((text) => oneLine(text, 1000)).join("\n") : null);
    this.cancel.hidden = !(LIVE.has(state) || state === "queued");
    if (!this.cancel.hidden) {
      say(this.cancel, "×");
      this.cancel.disabled = pending > 0;
      attribute(this.cancel, "aria-label", `cancel ${job.name}`);
      attribute(this.cancel, "title", "cancel this job");
    }
    this.tick(view, performance.now());
  }

  drawBar({ state, more, name }) {
    const value = state === "succeeded" ? 1 : more.progress;
    this.bar.hidden = state !== "running" && state !== "succeeded";
    if (this.bar.hidden) return;
    attribute(this.bar, "aria-label", name || "job");
    attribute(this.bar, "aria-valuenow", value === undefined ? null : Math.round(value * 100));
    this.fill.style.width = value === undefined ? "" : `${(value * 100).toFixed(1)}%`;
    if (value !== undefined) this.fill.style.transform = "";
    this.bar.classList.toggle("arrea-unknown", value === undefined);
  }

  /** What changes with the clock alone. */
  tick(view, now) {
    const { job } = this;
    const { state, more } = job;
    const { timeout, tries } = view.state.batch;
    const then = view.lost ? job.at : now;
    const elapsed = job.elapsed(then);
    const near = state === "running" && timeout && elapsed > timeout / 2;
    const took = elapsed === null ? "" : (state === "running" ? spoken : lasted)(elapsed);
    say(this.time, near ? `${took} of ${spoken(timeout, true)}` : took);
    this.time.classList.toggle("arrea-near", Boolean(near));
    const percent =
      state === "running" && more.progress !== undefined ? `${Math.round(more.progress * 100)} %` : "";
    say(this.how, percent || outcome(job, tries, then));
    if (state === "running" && more.progress === undefined && !view.lost)
      this.fill.style.transform = `translateX(${(100 / UNKNOWN - 100) * swing(now)}%)`;
  }
}

export class Rows {
  constructor(view, id) {
    this.view = view;
    this.id = id;
    this.order = null; // indexes of the jobs, in the order shown; null: all, as given
    this.active = 0; // the place that arrows move from
    this.following = true; // the list goes along with the jobs that run, until the reader scrolls
    this.expected = 0; // where we scrolled to ourselves
    this.height = 24;
    this.pool = [];
    this.grid = element("div", "arrea-rows", { role: "grid", tabindex: "0", "aria-label": "jobs" });
    this.space = element("div", "arrea-space", { role: "rowgroup" });
    this.empty = element("div", "arrea-empty");
    this.grid.append(this.space);
    this.node = element("div", "arrea-list");
    this.node.append(this.grid, this.empty);
    this.grid.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.grid.addEventListener("keydown", (event) => this.key(event));
  }

  get total() {
    return this.order ? this.order.length : this.view.state.jobs.length;
  }

  job(at) {
    return this.view.state.jobs[this.order ? this.order[at] : at];
  }

  placeOf(index) {
    return this.order ? this.order.indexOf(index) : index;
  }

  /** Shows other jobs, or these in another order. */
  reorder(order, { keep }) {
    this.order = order;
    if (!keep) this.grid.scrollTop = this.expected = 0;
    this.active = Math.min(this.active, Math.max(0, this.total - 1));
  }

  /** Looks at the size of a row and of what can be seen; asked when they may have changed. */
  measure() {
    const size = Number.parseFloat(getComputedStyle(this.grid).fontSize) || 13;
    this.height = Math.round(size * 1.85);
    this.node.style.setProperty("--arrea-row", `${this.height}px`);
    this.seenHeight = this.grid.clientHeight;
  }

  scrolled() {
    if (Math.abs(this.grid.scrollTop - this.expected) > 1) {
      this.expected = this.grid.scrollTop;
      this.following = this.seesRunning();
    }
    this.layout(false);
  }

  seesRunning() {
    const running = this.view.firstRunning();
    if (running === null) return false;
    const top = this.placeOf(running) * this.height;
    return top >= this.grid.scrollTop - this.height && top < this.grid.scrollTop + this.seenHeight;
  }

  scrollTo(top) {
    this.expected = Math.max(0, Math.min(top, this.total * this.height - this.seenHeight));
    this.grid.scrollTop = this.expected;
  }

  /** Draws the rows that can be seen: all of them, or those of `changed` jobs and those that are new here. */
  layout(all, changed = null) {
    const { total, height } = this;
    this.space.style.height = `${total * height}px`;
    // A filter leaves the room that all jobs had: what is below does not jump.
    this.grid.style.minHeight = `${Math.min(SHOWN, this.view.state.jobs.length) * height}px`;
    attribute(this.grid, "aria-rowcount", total);
    if (!this.seenHeight) this.measure();
    if (all && this.following) this.follow();
    const [first, last] = range(this.grid.scrollTop, this.seenHeight || 300, height, total);
    while (this.pool.length < last - first) {
      const row = new Row(this, `${this.id}-row-${this.pool.length}`);
      this.pool.push(row);
      this.space.append(row.node);
    }
    const size = this.pool.length;
    const used = new Set();
    for (let at = first; at < last; at++) {
      const row = this.pool[at % size];
      const job = this.job(at);
      used.add(row);
      const fresh = row.job !== job || row.at !== at || row.height !== height || row.node.hidden;
      if (fresh) row.place(job, at, height);
      if (fresh || all || changed?.has(job.index)) row.draw(this.view);
    }
    for (const row of this.pool) if (!used.has(row)) row.node.hidden = true;
    this.drawActive();
  }

  // Keeps the jobs that run in sight: the first of them third from the top.
  follow() {
    const running = this.view.firstRunning();
    if (running === null) return;
    const at = this.placeOf(running);
    if (at < 0) return;
    const top = at * this.height;
    const low = this.grid.scrollTop + this.seenHeight - 4 * this.height;
    if (top > low || top < this.grid.scrollTop) this.scrollTo((at - 2) * this.height);
  }

  drawActive() {
    const row = this.pool.find((one) => !one.node.hidden && one.at === this.active);
    for (const one of this.pool) one.node.classList.toggle("arrea-active", one === row);
    attribute(this.grid, "aria-activedescendant", row ? row.node.id : null);
  }

  tick(now) {
    for (const row of this.pool) {
      const state = row.job?.state;
      if (!row.node.hidden && (state === "running" || state === "waiting")) row.tick(this.view, now);
    }
  }

  choose(at) {
    this.active = at;
    this.view.choose(this.job(at).index);
  }

  key(event) {
    if (event.target !== this.grid || event.altKey || event.ctrlKey || event.metaKey || !this.total) return;
    const page = Math.max(1, Math.floor(this.seenHeight / this.height) - 1);
    const moves = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -this.total,
      End: this.total,
    };
    if (event.key in moves) this.move(moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.choose(this.active);
    else if (event.key === "Delete") this.view.cancel(this.job(this.active).index);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(by) {
    this.active = Math.max(0, Math.min(this.total - 1, this.active + by));
    this.following = false;
    const top = this.active * this.height;
    if (top < this.grid.scrollTop) this.scrollTo(top);
    else if (top + this.height > this.grid.scrollTop + this.seenHeight)
      this.scrollTo(top + this.height - this.seenHeight);
    this.layout(false);
  }
}
