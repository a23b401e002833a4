// The output panel: what the chosen job printed, as a terminal would show it.
// Guarantees: it follows the end until the reader scrolls up; all text goes in as text; a colour comes from a
// fixed set or is made of three numbers. It needs nothing but what the browser has been sent.
import { HEAD, PLAIN, Terminal } from "./terminal.js";
import { attribute, element, say } from "./dom.js";
import { amount, oneLine } from "./text.js";

const NEAR = 8; // px from the end that count as the end

function drawn(line) {
  const node = element("div", line.stderr ? "arrea-line arrea-stderr" : "arrea-line");
  for (const [style, text] of line.parts) {
    if (style === PLAIN) {
      node.append(text);
      continue;
    }
    const span = element("span");
    span.textContent = text;
    for (const name of ["bold", "faint", "italic", "underline", "strike"])
      if (style[name]) span.classList.add(`arrea-${name}`);
    const [fore, back] = style.inverse ? [style.back, style.fore] : [style.fore, style.back];
    if (style.inverse && !back) span.classList.add("arrea-inverse");
    if (fore) colour(span, "fore", fore);
    if (back) colour(span, "back", back);
    node.append(span);
  }
  return node;
}

function colour(span, name, value) {
  span.classList.add(`arrea-${name}`);
  span.style.setProperty(`--arrea-${name}`, value);
}

export class Panel {
  constructor() {
    this.job = null;
    this.output = null;
    this.terminal = new Terminal();
    this.nodes = new Map(); // from line to element
    this.follow = true;
    this.expected = 0;
    this.tallest = 0;
    this.build();
  }

  build() {
    this.node = element("div", "arrea-panel");
    const head = element("div", "arrea-panel-head");
    this.title = element("bdi", "arrea-panel-title");
    this.following = this.button("following", "go to the end and stay there", () => {
      this.follow = true;
      this.toEnd();
      this.drawHead();
    });
    this.wrap = this.button("wrap", "break long lines", () => {
      attribute(this.wrap, "aria-pressed", !this.body.classList.toggle("arrea-nowrap"));
      if (this.follow) this.toEnd();
    });
    attribute(this.wrap, "aria-pressed", true);
    this.copy = this.button("copy", "copy this output", () => this.copyText());
    head.append(this.title, this.following, this.wrap, this.copy);
    this.body = element("div", "arrea-output", { tabindex: "0", role: "log", "aria-live": "off" });
    this.empty = element("div", "arrea-omitted");
    this.omitted = element("div", "arrea-omitted");
    this.body.append(this.empty);
    this.body.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.why = element("div", "arrea-why");
    this.node.append(head, this.why, this.body);
  }

  button(text, title, act) {
    const node = element("button", "arrea-quiet", { type: "button", title });
    node.textContent = text;
    node.addEventListener("click", act);
    return node;
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.body;
    if (Math.abs(scrollTop - this.expected) < 2) return;
    this.follow = scrollHeight - scrollTop - clientHeight < NEAR;
    this.drawHead();
  }

  toEnd() {
    this.body.scrollTop = this.body.scrollHeight;
    this.expected = this.body.scrollTop;
  }

  /** Shows this job's output from now on; null: no job's. */
  show(job) {
    if (job !== this.job) this.follow = true;
    this.job = job;
    this.node.hidden = !job;
    if (!job) return;
    say(this.title, job.name);
    attribute(this.title, "title", job.full);
    attribute(this.body, "aria-label", `output of ${job.name}`);
    this.load(job.output);
    this.draw();
  }

  load(output) {
    if (this.output) this.output.listener = null;
    this.output = output;
    this.terminal = new Terminal();
    this.nodes.clear();
    this.body.replaceChildren(this.empty);
    if (!output) return;
    const { terminal } = this;
    const feed = (pieces) => {
      for (const [stream, text] of pieces) terminal.feed(text, stream === 1);
    };
    feed(output.head);
    if (output.skipped) terminal.gap(output.skipped);
    feed(output.tail);
    output.listener = (pieces, skipped) => {
      if (skipped) terminal.gap(skipped);
      feed(pieces);
    };
  }

  draw() {
    if (!this.job) return;
    if (this.job.output !== this.output) this.load(this.job.output);
    const { terminal, nodes } = this;
    for (const line of terminal.removed.splice(0)) {
      nodes.get(line)?.remove();
      nodes.delete(line);
    }
    // The last line is empty as long as nothing follows the last newline.
    const lines = terminal.lines.at(-1).length ? terminal.lines : terminal.lines.slice(0, -1);
    for (const line of lines) {
      if (!line.dirty) continue;
      line.dirty = false;
      const [before, node] = [nodes.get(line), drawn(line)];
      nodes.set(line, node);
      if (before) before.replaceWith(node);
      else this.body.append(node);
    }
    if (terminal.omitted) {
      say(this.omitted, `… ${amount(terminal.omitted)} left out here; job.output has all of it …`);
      const after = terminal.head ? nodes.get(terminal.lines[Math.min(terminal.head, HEAD) - 1]) : this.empty;
      if (after && after.nextSibling !== this.omitted) after.after(this.omitted);
    }
    const { state, more } = this.job;
    say(this.empty, this.output ? "" : state === "queued" ? "not started yet" : "nothing printed");
    say(this.why, (more.error && oneLine(more.error, 1000)) || "");
    this.why.hidden = !more.error;
    this.empty.hidden = Boolean(this.output);
    if (this.follow) this.toEnd();
    // It grows with what is printed and stays so: what is below does not jump when another job is chosen.
    this.tallest = Math.max(this.tallest, this.body.offsetHeight);
    this.body.style.minHeight = `${this.tallest}px`;
    this.drawHead();
  }

  drawHead() {
    attribute(this.following, "aria-pressed", this.follow);
    say(this.following, this.follow ? "following" : "follow");
    this.copy.disabled = !this.output;
  }

  async copyText() {
    const text = this.terminal.text();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without https there is no clipboard for scripts, but there is for a selection.
      const range = document.createRange();
      range.selectNodeContents(this.body);
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      document.execCommand("copy");
    }
    say(this.copy, "copied");
    setTimeout(() => say(this.copy, "copy"), 1500);
  }

  leave() {
    if (this.output) this.output.listener = null;
  }
}
