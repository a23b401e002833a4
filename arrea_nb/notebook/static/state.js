// What this browser knows of the batch: the jobs, what they printed, and which of them are to be seen.
// Guarantees: `merge` takes the picture and the frames that follow it, in their order; another picture, as when a
// second view of the batch asks for one, takes nothing away of what is known; memory is bounded, for each job and
// for all. Nothing here knows the document or the kernel.
import { inert, lastLine, oneLine } from "./text.js";

const HEAD_KEPT = 16_000; // characters of the beginning of what a job printed
const TAIL_KEPT = 200_000; // and of its end
const ALL_KEPT = 32_000_000; // and of all jobs; past it, those that printed longest ago keep their last lines
const REST_KEPT = 2_000;

export const LIVE = new Set(["running", "waiting"]);
export const FAILED = new Set(["failed", "timed_out"]);
const ENDED = new Set(["succeeded", "failed", "timed_out", "cancelled", "skipped"]);
/** From what needs a reader to what does not. */
export const BY_STATE = [
  "failed",
  "timed_out",
  "running",
  "waiting",
  "cancelled",
  "skipped",
  "queued",
  "succeeded",
];
export const FILTERS = {
  all: () => true,
  running: (job) => LIVE.has(job.state),
  failed: (job) => FAILED.has(job.state),
};

const REPLACEMENT = "\ufffd"; // stands for bytes that are no text
const ENCODER = new TextEncoder();
const DECODER = new TextDecoder("utf-8", { ignoreBOM: true });

const bytes = (pieces) => pieces.reduce((sum, [, text]) => sum + ENCODER.encode(text).length, 0);

/** The pieces without so many bytes of their beginning. */
function without(pieces, count) {
  const left = [];
  for (const [stream, text] of pieces) {
    const data = ENCODER.encode(text);
    if (data.length > count) left.push([stream, count > 0 ? DECODER.decode(data.subarray(count)) : text]);
    count -= data.length;
  }
  return left;
}

/** What one attempt of one job printed: its beginning and its end. */
export class Output {
  constructor() {
    this.head = []; // [stream, text]; stream 1 is stderr
    this.headSize = 0;
    this.skipped = 0; // characters, or bytes, that lie between
    this.tail = [];
    this.size = 0; // of the tail
    this.listener = null; // is told what is added
    this.version = 0;
    this.heard = 0; // bytes, those that were never sent among them
    this.again = null; // how many of them were told once more; null: what comes now is new
    this.exact = true; // `heard` is: no text stands for bytes that are none
  }

  /** What was printed is told from its beginning once more. */
  retold() {
    this.again = 0;
  }

  /** Adds pieces, of which `skipped` bytes before them were never sent. */
  add(pieces, skipped) {
    if (this.again !== null) {
      [pieces, skipped] = this.unheard(pieces, skipped);
      if (!pieces.length) return;
    }
    this.heard += skipped + bytes(pieces);
    this.exact &&= !pieces.some(([, text]) => text.includes(REPLACEMENT));
    if (skipped) {
      this.skipped += skipped + this.size;
      this.tail = [];
      this.size = 0;
      this.headSize = HEAD_KEPT; // what comes now is not the beginning
    }
    for (const [stream, text] of pieces) {
      const room = Math.max(0, HEAD_KEPT - this.headSize);
      const first = text.slice(0, room);
      if (first) this.put(this.head, stream, first);
      this.headSize += first.length;
      const rest = text.slice(first.length);
      if (rest) this.put(this.tail, stream, rest);
      this.size += rest.length;
    }
    this.trim(TAIL_KEPT);
    this.listener?.(pieces, skipped);
    this.version += 1;
  }

  // What of these pieces was not heard yet, and how many bytes lie before it.
  unheard(pieces, skipped) {
    const start = this.again + skipped;
    const end = start + bytes(pieces);
    const { heard } = this;
    this.again = end < heard ? end : null;
    return [without(pieces, heard - start), Math.max(0, start - heard)];
  }

  put(parts, stream, text) {
    const last = parts[parts.length - 1];
    if (last && last[0] === stream && last[1].length < 4096) last[1] += text;
    else parts.push([stream, text]);
  }

  trim(most) {
    while (this.size > most && this.tail.length) {
      const first = this.tail[0];
      const gone = Math.min(first[1].length, this.size - most);
      if (gone === first[1].length) this.tail.shift();
      else first[1] = first[1].slice(gone);
      this.size -= gone;
      this.skipped += gone;
    }
  }

  lastLine() {
    let text = "";
    for (const parts of [this.tail, this.head])
      for (let at = parts.length - 1; at >= 0 && text.length < 2000; at--) text = parts[at][1] + text;
    return lastLine(text);
  }
}

/** One job as it was last told. Times are in seconds; `at` is when that was, in ms. */
export class Job {
  constructor(index) {
    this.index = index;
    this.name = "";
    this.full = "";
    this.state = "queued";
    this.attempt = 0;
    this.start = null; // of the attempt, since the batch began
    this.took = null; // the attempt that runs, or the whole job once it ended
    this.more = {}; // progress, message, error, note, past, due, cpu, memory, asking: what there is
    this.at = 0;
    this.output = null;
    this.edition = 0; // of the output that it has or had
    this.line = "";
  }

  rename(name) {
    this.name = oneLine(name);
    this.full = inert(name);
  }

  update([, state, attempt, start, took, more], states, now) {
    if (attempt > this.attempt) {
      this.output = null; // that of the attempt before
      this.line = "";
    }
    this.state = states[state];
    this.attempt = attempt;
    this.start = start;
    this.took = took;
    this.more = more || {};
    this.at = now;
  }

  /** All is told once more, editions counted from the first: what is known stays, and only what is new is added. */
  retold() {
    this.edition = 0;
    this.output?.retold();
  }

  /** Whether its attempt is over, and the policy is being asked what comes next. */
  get asking() {
    return this.state === "running" && this.more.asking === true;
  }

  /** Seconds that it has taken by `now`, or null. The clock stands while the policy is asked. */
  elapsed(now) {
    if (this.took === null) return null;
    return this.state === "running" && !this.asking ? this.took + (now - this.at) / 1000 : this.took;
  }

  /** Seconds until its next attempt, or null. */
  due(now) {
    return this.state === "waiting" && this.more.due !== undefined
      ? Math.max(0, this.more.due - (now - this.at) / 1000)
      : null;
  }

  /** Its attempts that began: [start, end or null, state], in seconds since the batch began. */
  attempts() {
    const past = (this.more.past || []).map(([start, took, state]) => [start, start + took, state]);
    if (this.start === null || this.state === "waiting") return past;
    if (this.state === "running") return [...past, [this.start, null, "running"]];
    const began = past.length ? past[0][0] : this.start;
    return [...past, [this.start, began + (this.took || 0), this.state]];
  }
}

export class State {
  constructor() {
    this.batch = { state: "running", workers: 0, timeout: null, tries: 1, elapsed: 0, eta: null, counts: {} };
    this.at = 0;
    this.states = [];
    this.jobs = [];
    this.kept = 0;
    this.printed = new Map(); // jobs with output, the last to print at the end
    this.version = 0; // grows with every change of a job's state
  }

  /** Takes a picture or a frame; returns the jobs that changed. */
  merge(message, now) {
    const changed = new Set();
    this.batch = message.batch;
    this.at = now;
    if (message.kind === "picture") {
      this.states = message.states;
      if (this.jobs.length) for (const job of this.jobs) job.retold();
      else this.jobs = Array.from({ length: message.total }, (_, index) => new Job(index));
      this.version += 1;
    }
    const [first, names] = message.names || [0, []];
    names.forEach((name, at) => {
      this.jobs[first + at].rename(name);
      changed.add(first + at);
    });
    for (const row of message.jobs) {
      const job = this.jobs[row[0]];
      const before = job.state;
      job.update(row, this.states, now);
      if (job.state !== before) this.version += 1;
      changed.add(job.index);
    }
    for (const [index, edition, skipped, pieces] of message.output) {
      this.print(this.jobs[index], edition, skipped, pieces);
      changed.add(index);
    }
    this.bound();
    return changed;
  }

  print(job, edition, skipped, pieces) {
    if (edition < job.edition) return; // that of an attempt before
    if (edition > job.edition) {
      // Told once more it is the same output, unless nobody can say where what is new begins.
      const known = job.edition === 0 && job.output?.exact;
      job.edition = edition;
      if (!known) job.output = new Output();
    }
    this.forget(job);
    if (!job.output) return; // the attempt that runs has printed nothing yet
    job.output.add(pieces, skipped);
    job.line = job.output.lastLine();
    const size = job.output.headSize + job.output.size;
    this.printed.set(job, size);
    this.kept += size;
  }

  forget(job) {
    this.kept -= this.printed.get(job) || 0;
    this.printed.delete(job);
  }

  bound() {
    for (const [job, size] of this.printed) {
      if (this.kept <= ALL_KEPT) return;
      if (job.output && job.output.size > REST_KEPT) {
        job.output.trim(REST_KEPT);
        const now = job.output.headSize + job.output.size;
        this.printed.set(job, now);
        this.kept -= size - now;
      }
    }
  }

  /** How many jobs have ended, and how many a filter would show. */
  tally() {
    const { counts } = this.batch;
    const sum = (states) => [...states].reduce((all, state) => all + (counts[state] || 0), 0);
    return { all: this.jobs.length, ended: sum(ENDED), running: sum(LIVE), failed: sum(FAILED) };
  }

  /**
   * The indexes of the jobs to be seen, in their order; null: all, in the order given.
   * filter: a name of FILTERS; search: part of a name; sort: given, state, duration, name.
   */
  seen({ filter, search, sort }, now) {
    if (filter === "all" && !search && sort === "given") return null;
    const wanted = FILTERS[filter];
    const part = search.toLowerCase();
    const found = this.jobs.filter((job) => wanted(job) && (!part || job.full.toLowerCase().includes(part)));
    if (sort === "state") {
      const rank = Object.fromEntries(BY_STATE.map((state, at) => [state, at]));
      found.sort((one, other) => rank[one.state] - rank[other.state]);
    } else if (sort === "duration") {
      const took = new Map(found.map((job) => [job, job.elapsed(now) ?? -1]));
      found.sort((one, other) => took.get(other) - took.get(one));
    } else if (sort === "name") {
      const order = new Intl.Collator(undefined, { numeric: true });
      found.sort((one, other) => order.compare(one.name, other.name));
    }
    return found.map((job) => job.index);
  }
}
