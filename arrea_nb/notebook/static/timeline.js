// Who ran when: a lane for each worker's place, a bar for each attempt, drawn on one canvas.
// Guarantees: one element, however many attempts there are, and at most two drawings a second.
import { attribute, counted, element, SHAPES, say, worded } from "./dom.js";
import { clock, lasted, spoken } from "./text.js";

const REDRAW = 500; // ms, at the least
const SHARE = 50; // times as long as a drawing takes is the pause to the next
const LANE = 8; // px, at the most
const MOST_HEIGHT = 120; // px
const TOLERANCE = 0.002; // s; times are rounded

/**
 * Puts each attempt on the first lane that is free when it starts. attempts: [start, end or null, …], in any
 * order; returns them in order of their start with their lane, and how many lanes there are.
 */
export function lanes(attempts) {
  const sorted = [...attempts].sort((one, other) => one[0] - other[0]);
  const free = []; // from when on each lane is free
  const placed = sorted.map((attempt) => {
    let lane = free.findIndex((since) => since <= attempt[0] + TOLERANCE);
    if (lane < 0) lane = free.length;
    free[lane] = attempt[1] === null ? Number.POSITIVE_INFINITY : attempt[1];
    return { attempt, lane };
  });
  return { placed, count: free.length };
}

export class Timeline {
  constructor(view) {
    this.view = view;
    this.drawnAt = Number.NEGATIVE_INFINITY;
    this.pause = REDRAW;
    this.placed = [];
    this.count = 0;
    this.node = element("div", "arrea-timeline");
    this.toggle = element("button", "arrea-quiet", { type: "button", "aria-expanded": "false" });
    this.toggle.textContent = "timeline";
    this.toggle.addEventListener("click", () => this.open(this.body.hidden));
    this.body = element("div", "arrea-timeline-body");
    this.body.hidden = true;
    this.canvas = element("canvas", "arrea-canvas", { role: "img" });
    this.legend = element("div", "arrea-timeline-legend");
    this.from = element("span");
    this.hovered = element("bdi", "arrea-text");
    this.until = element("span");
    this.legend.append(this.from, this.hovered, this.until);
    this.body.append(this.canvas, this.legend);
    this.node.append(this.body);
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => say(this.hovered, ""));
    this.canvas.addEventListener("click", (event) => {
      const found = this.at(event);
      if (found) this.view.choose(found.attempt[3].index);
    });
  }

  open(open) {
    this.body.hidden = !open;
    attribute(this.toggle, "aria-expanded", open);
    this.draw(performance.now(), true);
  }

  /** Draws what is known, if it is open and was not just drawn. */
  draw(now, must = false) {
    if (this.body.hidden) return;
    if (must || now - this.drawnAt >= this.pause) this.drawPicture(now);
    // The picture may be a little older; the clock in the head and this one are one.
    say(this.until, clock(this.view.elapsed(now)));
  }

  drawPicture(now) {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const colours = this.view.colours();
    this.drawnAt = now;
    const { jobs } = this.view.state;
    const attempts = jobs.flatMap((job) => job.attempts().map((attempt) => [...attempt, job]));
    Object.assign(this, lanes(attempts));
    this.end = attempts.reduce(
      (last, [, end]) => Math.max(last, end ?? 0),
      Math.max(0.1, this.view.elapsed(now)),
    );
    this.lane = Math.min(LANE, MOST_HEIGHT / Math.max(1, this.count));
    this.paint(width, Math.max(this.lane, Math.ceil(this.lane * this.count)), colours);
    say(this.from, clock(0));
    const number = `${counted(attempts.length)} attempts on ${counted(this.count)} lanes`;
    attribute(this.canvas, "aria-label", `timeline: ${number}`);
    this.pause = Math.max(REDRAW, SHARE * (performance.now() - now));
  }

  paint(width, height, colours) {
    const ratio = window.devicePixelRatio || 1;
    const { canvas } = this;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const scale = width / this.end;
    const bad = new Set(["failed", "timed_out"]);
    // What failed comes last and is never too small to be seen.
    for (const failed of [false, true]) {
      for (const { attempt, lane } of this.placed) {
        const [start, end, state] = attempt;
        if (bad.has(state) !== failed) continue;
        const x = start * scale;
        const wide = ((end ?? this.end) - start) * scale;
        context.fillStyle = colours[state] || colours.queued;
        context.globalAlpha = failed ? 1 : 0.7;
        const gap = this.lane >= 4 ? 1 : 0;
        context.fillRect(
          x,
          lane * this.lane,
          Math.max(wide > 3 ? wide - 1 : wide, failed ? 2 : 0.5),
          this.lane - gap,
        );
      }
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const time = ((event.clientX - box.left) / box.width) * this.end;
    const lane = Math.floor((event.clientY - box.top) / this.lane);
    const slack = (2 / box.width) * this.end;
    let found = null;
    for (const one of this.placed) {
      const [start, end] = one.attempt;
      if (one.lane === lane && start - slack <= time && time <= (end ?? this.end) + slack) found = one;
    }
    return found;
  }

  hover(event) {
    const found = this.at(event);
    this.canvas.style.cursor = found ? "pointer" : "";
    if (!found) return say(this.hovered, "");
    const [start, end, state, job] = found.attempt;
    const took = (end === null ? spoken : lasted)((end ?? this.view.elapsed(performance.now())) - start);
    return say(
      this.hovered,
      `${SHAPES[state]} ${job.name} · ${worded(state)} · ${took} · began at ${clock(start)}`,
    );
  }
}
