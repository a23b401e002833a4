// The live view of one batch. What Python sends: picture (everything), frame (what changed), ack.
// What this sends: hello (until a picture comes, and when a frame is missing), bye, command (until its ack).
// All text goes in by textContent, after `inert`. Nothing here needs the kernel but the frames themselves.

const HELLO = 1000; // ms between two hellos
const RESEND = 700; // ms until a command is sent again
const IMPATIENT = 1000; // ms without an ack until the button says so
const DOUBT = 6500; // ms without a frame until it is asked whether it is there; Python sends one every 5 s
const SILENCE = 12000; // and until the kernel counts as lost
const TAIL = 200000; // characters of a job's output that are kept
const SHOWN = 60000; // and shown
const ROWS = 500; // row elements at the most

const SHAPES = {
  queued: "○", running: "▶", waiting: "↻", succeeded: "✔",
  failed: "✖", timed_out: "◷", cancelled: "■", skipped: "▷",
};
const LIVE = new Set(["queued", "running", "waiting"]);
const BAD = new Set(["failed", "timed_out", "cancelled", "skipped"]);
const ORDER = ["failed", "timed_out", "cancelled", "skipped", "running", "waiting", "queued", "succeeded"];

const ESCAPES =
  /(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]{0,8192}(?:\x07|\x1b\\|\x9c)|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c\n]{0,8192}(?:\x1b\\|\x9c)|(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]|\x1b[ -/]{0,8}[0-OQ-WYZ\\`-~]/g;
const INVISIBLE =
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

// Text without terminal sequences, in which nothing invisible is left; newlines and tabs stay.
function inert(text) {
  return text.replace(ESCAPES, "").replace(INVISIBLE, (found) => {
    const code = found.charCodeAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
}

// A line as a terminal would leave it: what was redrawn is gone.
function redrawn(line) {
  line = line.replace(/\r+$/, "");
  return inert(line.slice(line.lastIndexOf("\r") + 1));
}

function oneLine(text) {
  return inert(text.replace(/\s+/g, " ").trim());
}

function spoken(seconds, round = false) {
  if (seconds < 60) return (round || seconds >= 10 ? Math.floor(seconds) : seconds.toFixed(1)) + " s";
  const whole = Math.floor(seconds);
  const parts = whole < 3600 ? [whole / 60, " min", whole % 60, " s"] : [whole / 3600, " h", (whole % 3600) / 60, " min"];
  const [large, small] = [Math.floor(parts[0]), Math.floor(parts[2])];
  return large + parts[1] + (small ? " " + small + parts[3] : "");
}

function element(tag, className, attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function attribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// What one browser says to one kernel: hello, commands until they are acknowledged, and how long it is silent.
class Line {
  constructor(model, client, onChange) {
    this.model = model;
    this.client = client;
    this.onChange = onChange;
    this.expected = null; // the number of the next frame; null: a picture is wanted
    this.heard = performance.now();
    this.greeted = -Infinity;
    this.gone = false; // the comm was closed: nobody will ever answer
    this.commands = new Map(); // from ref to what was asked and when
    this.count = 0;
  }

  send(message) {
    if (this.gone) return;
    try {
      this.model.send({ ...message, client: this.client });
    } catch (error) {
      this.gone = true;
    }
  }

  // Whether this frame is the next one; else the whole picture is asked for again.
  accept(message) {
    this.heard = performance.now();
    this.gone = false;
    if (message.kind === "picture" || message.number === this.expected) {
      this.expected = message.number + 1;
      return true;
    }
    this.expected = null;
    this.greet();
    return false;
  }

  greet() {
    if (performance.now() - this.greeted < HELLO - 50) return;
    this.greeted = performance.now();
    this.send({ kind: "hello" });
  }

  ask(verb, more, key) {
    for (const command of this.commands.values()) if (command.key === key && !command.error) return;
    const ref = this.client + "-" + ++this.count;
    const now = performance.now();
    this.commands.set(ref, { key, message: { kind: "command", ref, verb, ...more }, asked: now, sent: now });
    this.send(this.commands.get(ref).message);
    this.onChange();
  }

  acknowledged({ ref, error }) {
    this.heard = performance.now();
    const command = this.commands.get(ref);
    if (!command) return;
    this.commands.delete(ref);
    if (error) {
      this.error = error;
      this.errorAt = performance.now();
    }
    this.onChange();
  }

  tick(running) {
    const now = performance.now();
    if (this.expected === null || (running && now - this.heard > DOUBT)) this.greet();
    for (const command of this.commands.values()) {
      if (now - command.sent > RESEND) {
        command.sent = now;
        this.send(command.message);
      }
    }
  }

  // How long this command has waited for its acknowledgement, in ms; 0: there is none.
  pending(key) {
    for (const command of this.commands.values())
      if (command.key === key) return Math.max(1, performance.now() - command.asked);
    return 0;
  }

  impatient() {
    for (const command of this.commands.values())
      if (performance.now() - command.asked > IMPATIENT) return true;
    return false;
  }

  lost(running) {
    return this.gone || (running && this.expected !== null && performance.now() - this.heard > SILENCE);
  }
}

// One job's output, its end only.
class Output {
  constructor() {
    this.parts = []; // [stream, text]
    this.size = 0;
    this.skipped = 0;
    this.version = 0;
  }

  add(parts, skipped) {
    if (skipped) {
      this.skipped += skipped;
      this.parts = [];
      this.size = 0;
    }
    for (const [stream, text] of parts) {
      const last = this.parts[this.parts.length - 1];
      if (last && last[0] === stream && last[1].length < 4096) last[1] += text;
      else this.parts.push([stream, text]);
      this.size += text.length;
    }
    while (this.size > TAIL && this.parts.length > 1) {
      this.size -= this.parts[0][1].length;
      this.skipped += this.parts.shift()[1].length;
    }
    this.version += 1;
  }

  lastLine() {
    let text = "";
    for (let i = this.parts.length - 1; i >= 0 && text.length < 2000; i--) text = this.parts[i][1] + text;
    const lines = text.slice(-4000).split("\n");
    for (let i = lines.length - 1; i >= 0; i--) {
      const line = redrawn(lines[i]).trim();
      if (line) return line.slice(0, 300);
    }
    return "";
  }
}

class Job {
  constructor(index, fixed) {
    this.index = index;
    this.name = oneLine(fixed.name).slice(0, 300);
    this.full = inert(fixed.name);
    this.output = new Output();
    this.update(fixed);
  }

  update(row) {
    if (this.row && row.attempt !== this.row.attempt) this.output = new Output();
    this.row = row;
    this.at = performance.now();
  }

  elapsed(stopped) {
    const { elapsed, state } = this.row;
    if (elapsed === undefined) return null;
    return state === "running" && !stopped ? elapsed + (performance.now() - this.at) / 1000 : elapsed;
  }
}

class Row {
  constructor(job, view) {
    this.job = job;
    this.node = element("div", "arrea-row", { role: "listitem" });
    this.shape = element("span", "arrea-shape", { "aria-hidden": "true" });
    this.state = element("span", "arrea-state");
    this.name = element("button", "arrea-name", { type: "button", "aria-pressed": "false", title: job.full });
    const text = element("bdi");
    text.textContent = job.name;
    this.name.append(`[${job.index}] `, text);
    this.bar = element("div", "arrea-progress", {
      role: "progressbar", "aria-label": job.name, "aria-valuemin": "0", "aria-valuemax": "100",
    });
    this.fill = element("div", "arrea-fill");
    this.bar.append(this.fill);
    this.time = element("span", "arrea-time");
    this.attempt = element("span", "arrea-attempt");
    this.last = element("span", "arrea-last", { dir: "auto" });
    this.cancel = element("button", "arrea-cancel", { type: "button", "aria-label": `cancel ${job.name}` });
    this.cancel.addEventListener("click", () => view.line.ask("cancel", { job: job.index }, "cancel " + job.index));
    this.name.addEventListener("click", () => view.choose(job.index));
    this.node.append(this.shape, this.state, this.name, this.bar, this.time, this.attempt, this.last, this.cancel);
  }

  draw(view) {
    const { job } = this;
    const { row } = job;
    const { state } = row;
    attribute(this.node, "data-state", state);
    say(this.shape, SHAPES[state] || "?");
    say(this.state, state.replace("_", " "));
    const value = state === "succeeded" ? 1 : row.progress;
    attribute(this.bar, "aria-valuenow", value === undefined ? null : Math.round(value * 100));
    this.fill.style.width = value === undefined ? "" : (value * 100).toFixed(1) + "%";
    this.bar.classList.toggle("arrea-unknown", state === "running" && value === undefined);
    say(this.attempt, row.attempt > 1 ? `attempt ${row.attempt}` : "");
    const why = row.error && row.error !== state ? oneLine(row.error) : "";
    say(this.last, why || row.message ? why || oneLine(row.message) : job.output.lastLine());
    attribute(this.last, "title", row.note ? oneLine(row.note) : null);
    const pending = view.line.pending("cancel " + job.index);
    this.cancel.hidden = !LIVE.has(state);
    say(this.cancel, pending > IMPATIENT ? "cancel: waits for the cell" : pending ? "cancelling…" : "cancel");
    attribute(this.name, "aria-pressed", view.chosen === job.index);
    this.tick(view);
  }

  tick(view) {
    const elapsed = this.job.elapsed(view.lost);
    let text = elapsed === null ? "" : spoken(elapsed);
    const { timeout } = view.batch;
    const near = elapsed !== null && timeout && this.job.row.state === "running" && elapsed > timeout / 2;
    if (near) text += ` of ${spoken(timeout, true)}`;
    say(this.time, text);
    this.time.classList.toggle("arrea-near", Boolean(near));
  }
}

class View {
  constructor(model, el) {
    const client = Math.random().toString(36).slice(2, 12);
    this.line = new Line(model, client, () => this.soon());
    this.model = model;
    this.batch = { state: "running", counts: {}, workers: 0, timeout: null, elapsed: 0, eta: null };
    this.at = performance.now();
    this.jobs = [];
    this.rows = [];
    this.changed = new Set();
    this.chosen = null;
    this.byHand = false; // the reader chose the job whose output is shown
    this.follow = true; // the output panel follows the end
    this.panel = { index: null, version: -1 };
    this.lost = false;
    this.scheduled = 0;
    this.build(el);
    this.heard = (message) => this.receive(message);
    this.left = () => { // the comm came or went: a hello finds out, since sending on a dead one fails
      this.line.greeted = -Infinity;
      this.line.greet();
      this.soon();
    };
    model.on("msg:custom", this.heard);
    model.on("comm_live_update", this.left);
    this.clock = setInterval(() => this.tick(), 250);
    this.line.greet();
    this.draw();
  }

  build(el) {
    const name = oneLine(this.model.get("name") || "");
    this.root = element("section", "arrea", { "aria-label": name ? `batch ${name}` : "batch" });
    const bar = element("div", "arrea-bar");
    this.title = element("span", "arrea-title");
    this.title.textContent = name;
    this.title.hidden = !name;
    this.counts = element("span", "arrea-counts");
    this.whole = element("div", "arrea-progress arrea-whole", {
      role: "progressbar", "aria-label": "jobs ended", "aria-valuemin": "0", "aria-valuemax": "100",
    });
    this.wholeFill = element("div", "arrea-fill");
    this.whole.append(this.wholeFill);
    this.fewer = this.stepper("−", "fewer at once", -1);
    this.further = this.stepper("+", "more at once", 1);
    this.limits = element("span", "arrea-limits");
    this.time = element("span", "arrea-time");
    this.cancelAll = element("button", "arrea-button", { type: "button" });
    this.cancelAll.addEventListener("click", () => this.line.ask("cancel_all", {}, "cancel_all"));
    this.retry = element("button", "arrea-button", { type: "button" });
    this.retry.addEventListener("click", () => this.line.ask("retry_failed", {}, "retry_failed"));
    bar.append(this.title, this.counts, this.whole, this.time, this.limits, this.fewer, this.further);
    bar.append(this.retry, this.cancelAll);
    this.notice = element("div", "arrea-notice", { role: "status" });
    this.list = element("div", "arrea-list", { role: "list", "aria-label": "jobs" });
    this.more = element("div", "arrea-more");
    this.label = element("div", "arrea-output-label", { dir: "auto" });
    this.output = element("pre", "arrea-output", { tabindex: "0", role: "log", "aria-live": "off" });
    this.output.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.output;
      this.follow = scrollHeight - scrollTop - clientHeight < 8;
    });
    this.root.append(bar, this.notice, this.list, this.more, this.label, this.output);
    el.append(this.root);
  }

  stepper(sign, label, step) {
    const node = element("button", "arrea-step", { type: "button", "aria-label": label, title: label });
    node.textContent = sign;
    node.addEventListener("click", () => {
      this.line.ask("set_workers", { workers: Math.max(1, this.batch.workers + step) }, "set_workers");
    });
    return node;
  }

  receive(message) {
    if (message.kind === "ack") return this.line.acknowledged(message);
    if (message.kind !== "picture" && message.kind !== "frame") return;
    if (!this.line.accept(message)) return;
    this.batch = message.batch;
    this.at = performance.now();
    if (message.kind === "picture") {
      this.jobs = message.jobs.map((fixed, index) => new Job(index, fixed));
      this.panel = { index: null, version: -1 };
      this.buildRows();
    } else {
      for (const [index, row] of message.jobs) {
        this.jobs[index].update(row);
        this.changed.add(index);
      }
      for (const { job, text, skipped } of message.output) {
        this.jobs[job].output.add(text, skipped);
        this.changed.add(job);
      }
    }
    this.soon();
  }

  buildRows() {
    this.rows = this.jobs.slice(0, ROWS).map((job) => new Row(job, this));
    this.list.replaceChildren(...this.rows.map((row) => row.node));
    this.changed = new Set(this.rows.keys());
    const left = this.jobs.length - this.rows.length;
    say(this.more, left > 0 ? `… and ${left} more jobs, counted above` : "");
  }

  choose(index) {
    const before = this.chosen;
    this.byHand = true;
    this.chosen = index;
    this.follow = true;
    for (const one of [before, index]) if (one !== null) this.changed.add(one);
    this.soon();
  }

  // Until the reader chooses: the first job that failed, else the first that runs, else what was.
  chooseForReader() {
    if (this.byHand || !this.jobs.length) return;
    const failed = this.jobs.find((job) => job.row.state === "failed" || job.row.state === "timed_out");
    const running = this.jobs.find((job) => job.row.state === "running");
    const current = this.chosen === null ? null : this.jobs[this.chosen];
    if (!failed && current && current.row.state === "running") return;
    const index = failed ? failed.index : running ? running.index : this.chosen === null ? 0 : this.chosen;
    if (index === this.chosen) return;
    if (this.chosen !== null) this.changed.add(this.chosen);
    this.changed.add(index);
    this.chosen = index;
  }

  soon() {
    if (!this.scheduled) this.scheduled = requestAnimationFrame(() => this.draw());
  }

  tick() {
    const running = this.batch.state === "running";
    this.line.tick(running);
    const lost = this.line.lost(running);
    if (lost !== this.lost || this.line.commands.size || this.line.expected === null) {
      this.lost = lost;
      for (const command of this.line.commands.values())
        if (command.message.job !== undefined) this.changed.add(command.message.job);
      this.soon();
    }
    if (running && !document.hidden) {
      for (const row of this.rows) if (row.job.row.state === "running") row.tick(this);
      this.drawTime();
    }
  }

  draw() {
    this.scheduled = 0;
    this.lost = this.line.lost(this.batch.state === "running");
    this.root.classList.toggle("arrea-lost", this.lost);
    this.chooseForReader();
    this.drawBar();
    this.drawNotice();
    for (const index of this.changed) if (this.rows[index]) this.rows[index].draw(this);
    // A row whose command was acknowledged is drawn once more, to forget "cancelling…".
    this.changed = new Set([...this.changed].filter((index) => this.line.pending("cancel " + index)));
    this.drawOutput();
  }

  drawBar() {
    const { counts, workers, timeout, state } = this.batch;
    const total = this.model.get("total");
    const ended = ORDER.filter((one) => !LIVE.has(one)).reduce((sum, one) => sum + (counts[one] || 0), 0);
    const known = ORDER.filter((one) => counts[one]).map((one) => `${counts[one]} ${one.replace("_", " ")}`);
    say(this.counts, known.join(", ") || `${total} jobs`);
    const percent = total ? Math.round((100 * ended) / total) : 100;
    attribute(this.whole, "aria-valuenow", percent);
    this.wholeFill.style.width = percent + "%";
    attribute(this.root, "data-state", state);
    say(this.limits, `${workers} at once · ${timeout ? spoken(timeout, true) + " each" : "no time limit"}`);
    const live = state === "running";
    this.button(this.cancelAll, "cancel_all", "Cancel all", live);
    const bad = [...BAD].some((one) => counts[one]);
    this.button(this.retry, "retry_failed", "Retry failed", !live && bad);
    this.fewer.hidden = this.further.hidden = !live;
    this.fewer.disabled = this.lost || workers <= 1;
    this.further.disabled = this.lost;
    this.drawTime();
  }

  button(node, key, label, shown) {
    const pending = this.line.pending(key);
    node.hidden = !shown;
    say(node, pending > IMPATIENT ? `${label}: waits for the cell` : pending ? `${label}…` : label);
  }

  drawTime() {
    const { elapsed, eta, state } = this.batch;
    const since = state === "running" && !this.lost ? (performance.now() - this.at) / 1000 : 0;
    let text = elapsed ? spoken(elapsed + since, true) : "";
    if (eta !== null && eta !== undefined && state === "running") {
      text += ` · about ${spoken(Math.max(0, eta - since), true)} left`;
    }
    say(this.time, text);
  }

  drawNotice() {
    const { line } = this;
    let text = "";
    if (line.gone && this.batch.state === "running") {
      text = "The kernel was restarted or has ended: this is what was known of the batch by then.";
    } else if (this.lost && this.batch.state === "running") {
      text = "No word from the kernel for some time: it may have died. This is what was known by then.";
    } else if (line.impatient()) {
      text = "The kernel is busy in a cell and will do this when the cell is free; "
        + "the stop button ■ in the toolbar cancels the batch that the cell waits for now.";
    } else if (line.error && performance.now() - line.errorAt < 15000) {
      text = oneLine(line.error);
    } else if (line.expected === null && !this.jobs.length) {
      const long = performance.now() - line.heard > SILENCE / 3;
      text = long ? "No kernel answers. wait() shows the summary; so does running the cell again."
        : "Waiting for the kernel…";
    }
    say(this.notice, text);
    this.notice.hidden = !text;
  }

  drawOutput() {
    const job = this.chosen === null ? null : this.jobs[this.chosen];
    this.label.hidden = this.output.hidden = !job;
    if (!job) return;
    const { output } = job;
    if (this.panel.output === output && this.panel.version === output.version) return;
    this.panel = { output, version: output.version };
    say(this.label, `output of [${job.index}] ${job.name}`);
    attribute(this.output, "aria-label", `output of ${job.name}`);
    let room = SHOWN;
    const pieces = [];
    for (let i = output.parts.length - 1; i >= 0 && room > 0; i--) {
      const [stream, text] = output.parts[i];
      const span = element("span", "arrea-" + stream);
      span.textContent = text.slice(-room).replace(/\r\n/g, "\n").split("\n").map(redrawn).join("\n");
      room -= text.length;
      pieces.unshift(span);
    }
    if (output.skipped || room < 0) {
      const mark = element("span", "arrea-omitted");
      mark.textContent = "… what was printed before is in job.output …\n";
      pieces.unshift(mark);
    }
    if (!pieces.length) {
      const mark = element("span", "arrea-omitted");
      mark.textContent = "nothing printed yet";
      pieces.push(mark);
    }
    const { follow } = this;
    this.output.replaceChildren(...pieces);
    if (follow) this.output.scrollTop = this.output.scrollHeight;
  }

  leave() {
    clearInterval(this.clock);
    cancelAnimationFrame(this.scheduled);
    this.model.off("msg:custom", this.heard);
    this.model.off("comm_live_update", this.left);
    this.line.send({ kind: "bye" });
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.leave();
  },
};
