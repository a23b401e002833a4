// The live view of one batch: what Python sends is merged into `State`, and what changed is drawn.
// Guarantees: nothing here needs the kernel but the frames and the commands; all text goes in as text, after
// `inert`; a frame costs what it changes, not what there is.
import { IMPATIENT, KernelLine } from "./line.js";
import { Panel } from "./output.js";
import { attribute, counted, element, say, worded } from "./dom.js";
import { Rows, TICK } from "./rows.js";
import { FILTERS, State } from "./state.js";
import { clock, oneLine, spoken } from "./text.js";
import { Timeline } from "./timeline.js";

const RESORT = 500; // ms from one sorting of the rows to the next
const SEGMENTS = ["succeeded", "failed", "timed_out", "cancelled", "skipped", "running", "waiting"];
const SORTS = { given: "order given", state: "state", duration: "duration", name: "name" };
const OPEN_LANES = 8; // a timeline of so many lanes is open from the beginning
let views = 0;

class View {
  constructor(model, el) {
    this.model = model;
    this.state = new State();
    const client = Math.random().toString(36).slice(2, 12);
    this.line = new KernelLine(
      (message) => model.send(message),
      client,
      () => this.soon(),
    );
    this.changed = new Set();
    this.all = true; // every row that can be seen is to be drawn
    this.chosen = null;
    this.byHand = false; // the reader chose the job whose output is shown
    this.lost = false;
    this.scheduled = 0;
    this.look = { filter: "all", search: "", sort: "given" };
    this.drawnAt = Number.NEGATIVE_INFINITY;
    this.sortedAt = Number.NEGATIVE_INFINITY;
    this.sortedVersion = -1;
    this.announced = "running";
    this.build(el);
    this.heard = (message) => this.receive(message);
    this.left = () => {
      this.line.doubt();
      this.soon();
    };
    model.on("msg:custom", this.heard);
    model.on("comm_live_update", this.left);
    this.clock = setInterval(() => this.tick(), TICK);
    this.resized = new ResizeObserver(() => {
      this.rows.measure();
      this.all = true;
      this.soon();
    });
    this.resized.observe(this.root);
    this.resized.observe(this.rows.grid);
    this.line.greet();
    this.draw();
  }

  build(el) {
    const name = oneLine(this.model.get("name") || "");
    this.root = element("section", "arrea", {
      "aria-label": name ? `batch ${name}` : "batch",
      // Without it JupyterLab takes the arrows, Enter and Delete for its own.
      "data-lm-suppress-shortcuts": "true",
    });
    this.rows = new Rows(this, `arrea-${++views}-${Date.now().toString(36)}`);
    this.timeline = new Timeline(this);
    this.panel = new Panel();
    this.notice = element("div", "arrea-notice", { role: "status" });
    this.spoken = element("div", "arrea-unseen", { "aria-live": "polite" });
    this.root.append(this.buildHead(name), this.buildBar(), this.notice, this.timeline.node);
    this.root.append(this.rows.node, this.panel.node, this.spoken);
    el.append(this.root);
  }

  buildHead(name) {
    const head = element("div", "arrea-head");
    this.title = element("bdi", "arrea-title", { title: name });
    this.title.textContent = name;
    this.title.hidden = !name;
    this.counts = element("span", "arrea-counts");
    this.time = element("span", "arrea-clock");
    const limits = element("span", "arrea-limits");
    this.limits = element("span");
    this.fewer = this.stepper("−", "fewer at once", -1);
    this.further = this.stepper("+", "more at once", 1);
    limits.append(this.limits, this.fewer, this.further);
    this.cancelAll = element("button", "arrea-button", { type: "button" });
    this.cancelAll.addEventListener("click", () => this.line.ask("cancel_all", {}, "cancel_all"));
    this.retry = element("button", "arrea-button", { type: "button" });
    this.retry.addEventListener("click", () => this.line.ask("retry_failed", {}, "retry_failed"));
    head.append(this.title, this.counts, this.time, limits, this.retry, this.cancelAll);
    return head;
  }

  buildBar() {
    const bar = element("div", "arrea-bar");
    this.whole = element("div", "arrea-whole", {
      role: "progressbar",
      "aria-label": "jobs ended",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
    });
    this.segments = SEGMENTS.map((state) => {
      const segment = element("div", "arrea-segment", { "data-state": state });
      this.whole.append(segment);
      return segment;
    });
    this.tools = element("div", "arrea-tools");
    this.filters = Object.keys(FILTERS).map((filter) => {
      const node = element("button", "arrea-quiet", { type: "button" });
      node.addEventListener("click", () => this.lookAt({ filter }));
      this.tools.append(node);
      return [filter, node];
    });
    this.search = element("input", "arrea-search", {
      type: "search",
      placeholder: "find…",
      "aria-label": "find jobs by name",
      spellcheck: "false",
    });
    this.search.addEventListener("input", () => this.lookAt({ search: this.search.value.trim() }));
    this.search.addEventListener("keydown", (event) => event.stopPropagation());
    this.sort = element("select", "arrea-sort", { "aria-label": "sort jobs by" });
    for (const [value, text] of Object.entries(SORTS)) {
      const option = element("option", "", { value });
      option.textContent = text;
      this.sort.append(option);
    }
    this.sort.addEventListener("change", () => this.lookAt({ sort: this.sort.value }));
    this.tools.append(this.search, this.sort, this.timeline.toggle);
    bar.append(this.whole, this.tools);
    return bar;
  }

  stepper(sign, label, step) {
    const node = element("button", "arrea-step", { type: "button", "aria-label": label, title: label });
    node.textContent = sign;
    node.addEventListener("click", () => {
      const workers = Math.max(1, this.state.batch.workers + step);
      this.line.ask("set_workers", { workers }, "set_workers");
    });
    return node;
  }

  receive(message) {
    if (message.kind === "ack") return this.line.acknowledged(message);
    if (message.kind !== "picture" && message.kind !== "frame") return undefined;
    if (!this.line.accept(message)) return undefined;
    const first = !this.state.jobs.length;
    const changed = this.state.merge(message, performance.now());
    if (message.kind === "picture") {
      this.all = true;
      if (this.chosen !== null) this.tellChosen();
      // The kernel sends every picture to all views: one that another view asked for changes nothing here.
      if (first) this.timeline.open(message.total > 1 && message.batch.workers <= OPEN_LANES);
    }
    for (const index of changed) this.changed.add(index);
    return this.soon();
  }

  lookAt(change) {
    Object.assign(this.look, change);
    this.order(performance.now(), { keep: false });
    this.rows.following = this.look.sort === "given";
    this.soon();
  }

  order(now, { keep }) {
    this.sortedAt = now;
    this.sortedVersion = this.state.version;
    this.rows.reorder(this.state.seen(this.look, now), { keep });
    this.all = true;
  }

  choose(index) {
    this.byHand = true;
    this.setChosen(index);
    this.tellChosen();
  }

  setChosen(index) {
    if (this.chosen !== null) this.changed.add(this.chosen);
    this.chosen = index;
    this.changed.add(index);
    this.soon();
  }

  /** Has the kernel send what this job prints before what others print. */
  tellChosen() {
    this.line.send({ kind: "look", job: this.chosen });
  }

  // Until the reader chooses: the first job that failed, else the first that runs, else what was.
  chooseForReader() {
    const { jobs } = this.state;
    if (this.byHand || !jobs.length) return;
    const current = this.chosen === null ? null : jobs[this.chosen];
    if (current && current.state === "failed") return;
    const failed = this.state.tally().failed ? jobs.find(FILTERS.failed) : null;
    if (!failed && current?.state === "running") return;
    const index = failed ? failed.index : (this.firstRunning() ?? this.chosen ?? 0);
    if (index !== this.chosen) this.setChosen(index);
  }

  /** The first job that runs, or null. */
  firstRunning() {
    if (!this.state.batch.counts.running) return null;
    const found = this.state.jobs.find((job) => job.state === "running");
    return found ? found.index : null;
  }

  cancel(index) {
    this.line.ask("cancel", { job: index }, `cancel ${index}`);
    this.changed.add(index);
  }

  soon() {
    if (!this.scheduled) this.scheduled = requestAnimationFrame(() => this.draw());
  }

  tick() {
    const running = this.state.batch.state === "running";
    this.line.tick(running);
    const lost = this.line.lost(running);
    if (lost !== this.lost || this.line.commands.size || this.line.expected === null || this.line.error) {
      for (const { message } of this.line.commands.values())
        if (message.job !== undefined) this.changed.add(message.job);
      this.soon();
    }
    // Frames that come one after the other move the clocks as they are drawn.
    const now = performance.now();
    if (running && !document.hidden && now - this.drawnAt >= TICK) {
      this.timeline.draw(now);
      if (!lost) this.rows.tick(now);
      this.drawTime(now);
    }
  }

  draw() {
    this.scheduled = 0;
    const now = performance.now();
    this.drawnAt = now;
    const lost = this.line.lost(this.state.batch.state === "running");
    this.all ||= lost !== this.lost;
    this.lost = lost;
    this.root.classList.toggle("arrea-lost", lost);
    this.chooseForReader();
    // First what asks for sizes, and last what needs its own text laid out: so the page is laid out once.
    this.timeline.draw(now, this.state.batch.state !== "running");
    if (this.state.version !== this.sortedVersion && now - this.sortedAt > RESORT)
      this.order(now, { keep: true });
    this.rows.layout(this.all, this.changed);
    if (!lost) this.rows.tick(now);
    this.rows.node.classList.toggle("arrea-none", !this.rows.total);
    say(this.rows.empty, this.rows.total || !this.state.jobs.length ? "" : "no such job");
    this.drawHead(now);
    this.drawNotice();
    const printed = this.all || this.changed.has(this.chosen);
    this.all = false;
    // A row whose command was acknowledged is drawn once more, to forget "cancelling…".
    this.changed = new Set([...this.changed].filter((index) => this.line.pending(`cancel ${index}`)));
    const job = this.chosen === null ? null : this.state.jobs[this.chosen];
    if (job !== this.panel.job) this.panel.show(job);
    else if (printed) this.panel.draw();
  }

  drawHead(now) {
    const { counts, workers, timeout, state } = this.state.batch;
    const { all, ended, running, failed } = this.state.tally();
    const said = [`${counted(ended)} of ${counted(all)}`];
    for (const one of ["running", "waiting", "failed", "timed_out", "cancelled", "skipped"])
      if (counts[one]) said.push(`${counted(counts[one])} ${worded(one)}`);
    say(this.counts, all ? said.join(" · ") : "");
    const percent = all ? Math.round((100 * ended) / all) : 0;
    attribute(this.whole, "aria-valuenow", percent);
    attribute(this.whole, "aria-valuetext", said.join(", "));
    SEGMENTS.forEach((one, at) => {
      const share = all ? (100 * (counts[one] || 0)) / all : 0;
      this.segments[at].style.width = `${share}%`;
      this.segments[at].hidden = !share;
      attribute(this.segments[at], "title", share ? `${counted(counts[one])} ${worded(one)}` : null);
    });
    const numbers = { all, running, failed };
    for (const [filter, node] of this.filters) {
      say(node, `${filter} ${counted(numbers[filter])}`);
      attribute(node, "aria-pressed", this.look.filter === filter);
    }
    this.tools.hidden = all < 2;
    attribute(this.root, "data-state", state);
    const each = timeout ? `${spoken(timeout, true)} each` : "no time limit";
    say(this.limits, `${workers} at once · ${each}`);
    const live = state === "running";
    this.button(this.cancelAll, "cancel_all", "Cancel all", live);
    const bad = failed + (counts.cancelled || 0) + (counts.skipped || 0) > 0;
    this.button(this.retry, "retry_failed", "Retry failed", !live && bad);
    this.fewer.hidden = this.further.hidden = !live;
    this.fewer.disabled = this.lost || workers <= 1;
    this.further.disabled = this.lost;
    if (state !== this.announced && all) say(this.spoken, `batch ${worded(state)}: ${said.join(", ")}`);
    this.announced = state;
    this.drawTime(now);
  }

  button(node, key, label, shown) {
    const pending = this.line.pending(key);
    node.hidden = !shown;
    say(node, pending > IMPATIENT ? `${label}: waits for the cell` : pending ? `${label}…` : label);
  }

  /** Seconds since the batch began, or that it took. */
  elapsed(now) {
    const { elapsed, state } = this.state.batch;
    return state === "running" && !this.lost && this.state.jobs.length
      ? elapsed + (now - this.state.at) / 1000
      : elapsed;
  }

  drawTime(now) {
    const { elapsed, eta, state } = this.state.batch;
    const since = this.elapsed(now);
    let text = this.state.jobs.length ? clock(since) : "";
    if (eta !== null && eta !== undefined && state === "running")
      text += `, about ${clock(Math.ceil(Math.max(0, eta - (since - elapsed))))} left`;
    say(this.time, text);
  }

  drawNotice() {
    const { line } = this;
    const running = this.state.batch.state === "running";
    let text = "";
    if (line.gone && running) {
      text = "The kernel was restarted or has ended: this is what was known of the batch by then.";
    } else if (this.lost && running) {
      text = "No word from the kernel for some time: it may have died. This is what was known by then.";
    } else if (line.impatient()) {
      text =
        "The kernel is busy in a cell and will do this when the cell is free; " +
        "the stop button ■ in the toolbar cancels the batch that the cell waits for now.";
    } else if (line.error) {
      text = oneLine(line.error);
      if (performance.now() - line.errorAt > 15000) line.error = text = "";
    } else if (line.expected === null && !this.state.jobs.length) {
      text =
        line.silent() > 4000
          ? "No kernel answers. wait() shows the summary; so does running the cell again."
          : "Waiting for the kernel…";
    }
    say(this.notice, text);
    this.notice.hidden = !text;
  }

  /** The colour of each state, as the theme has it now. */
  colours() {
    const found = {};
    for (const segment of this.segments)
      found[segment.dataset.state] = getComputedStyle(segment).backgroundColor;
    found.queued = getComputedStyle(this.whole).color;
    return found;
  }

  leave() {
    clearInterval(this.clock);
    cancelAnimationFrame(this.scheduled);
    this.resized.disconnect();
    this.panel.leave();
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
