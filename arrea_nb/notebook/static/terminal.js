// What one job printed, as lines on a terminal that scrolls: carriage returns and backspaces go back on the
// line, a few sequences move between lines and erase, SGR sequences colour; all others are left out.
// Guarantees: bounded, whatever is printed: HEAD lines of the beginning, TAIL of the end, LINE characters of
// each end of a line; what lies between is counted in `omitted`. Knows no document.
import { amount, SEQUENCE, visible } from "./text.js";

export const HEAD = 200; // lines
export const TAIL = 2000; // lines
const SLACK = 200; // lines past TAIL until they are dropped, so that this is done now and then only
const LINE = 8000; // characters kept at each end of a long line
const PENDING = 4096; // characters of a sequence whose end has not come

const TOKEN = new RegExp(`${SEQUENCE}|[\\n\\r\\b]|[^\\x1b\\x90-\\x9f\\n\\r\\b]+|[^]`, "g");
const UNFINISHED =
  /(?:\x1b\[|\x9b)[0-?]*[ -/]*$|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*\x1b?$|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c\n]*\x1b?$|\x1b[ -/]*$/;
const CONTROL = /^(?:\x1b\[|\x9b)([0-?]*)[ -/]*([@-~])$/;

// The 16 colours, as xterm has them; the style sheet bends them until they can be read on the theme.
const SIXTEEN = [
  "#000000",
  "#cd3131",
  "#0a8a3a",
  "#a07800",
  "#2472c8",
  "#a626a4",
  "#0b7d94",
  "#8a8a8a",
  "#666666",
  "#f14c4c",
  "#23a45a",
  "#c29a00",
  "#3b8eea",
  "#c04fc0",
  "#1298b0",
  "#b0b0b0",
];
export const PLAIN = Object.freeze({});

/** What lies between head and tail, or in the middle of a long line. */
const omission = (count) => ` … ${amount(count)} left out … `;

function slice(parts, from, to) {
  const found = [];
  let at = 0;
  for (const [style, text] of parts) {
    const piece = text.slice(Math.max(0, from - at), Math.max(0, to - at));
    if (piece) found.push([style, piece]);
    at += text.length;
    if (at >= to) break;
  }
  return found;
}

export class Line {
  constructor() {
    this.parts = []; // [style, text]
    this.length = 0;
    this.cut = 0; // characters that were taken out of its middle
    this.stderr = false;
    this.dirty = true;
  }

  get text() {
    return this.parts.map(([, text]) => text).join("");
  }

  /** Puts text at a column, over what is there; returns the column after it. */
  write(column, style, text) {
    this.dirty = true;
    if (column > this.length) this.append(PLAIN, " ".repeat(column - this.length));
    const end = column + text.length;
    if (column === this.length) {
      this.append(style, text);
    } else {
      const rest = slice(this.parts, end, Number.POSITIVE_INFINITY);
      this.parts = [...slice(this.parts, 0, column), [style, text], ...rest];
      this.length = Math.max(this.length, end);
    }
    if (this.length > 3 * LINE) this.shorten();
    return Math.min(end, this.length);
  }

  append(style, text) {
    const last = this.parts[this.parts.length - 1];
    if (last && last[0] === style) last[1] += text;
    else this.parts.push([style, text]);
    this.length += text.length;
  }

  erase(from, to) {
    this.dirty = true;
    if (to >= this.length) {
      this.parts = slice(this.parts, 0, from);
      this.length = Math.min(this.length, from);
    } else {
      this.write(from, PLAIN, " ".repeat(to - from));
    }
  }

  shorten() {
    const mark = this.cut ? omission(this.cut).length : 0;
    this.cut += this.length - 2 * LINE - mark;
    const first = slice(this.parts, 0, LINE);
    const last = slice(this.parts, this.length - LINE, this.length);
    this.parts = [...first, [PLAIN, omission(this.cut)], ...last];
    this.length = this.parts.reduce((sum, [, text]) => sum + text.length, 0);
  }
}

export class Terminal {
  constructor() {
    this.lines = [new Line()];
    this.head = HEAD; // so many lines of the beginning stay, whatever comes
    this.omitted = 0; // characters between them and the rest
    this.removed = []; // lines that were dropped since somebody looked
    this.row = 0;
    this.column = 0;
    this.style = PLAIN;
    this.pending = "";
    this.beheaded = false; // what comes next may begin in the middle of a line
  }

  /** Takes what was printed; `stderr` tells the stream. */
  feed(text, stderr = false) {
    let all = this.pending + text;
    this.pending = "";
    if (this.beheaded) {
      this.beheaded = false;
      const end = all.indexOf("\n") + 1;
      if (end < all.length) {
        this.omitted += end;
        all = all.slice(end);
      }
    }
    const unfinished = UNFINISHED.exec(all.slice(-PENDING));
    if (unfinished) {
      this.pending = unfinished[0];
      all = all.slice(0, all.length - this.pending.length);
    }
    for (const [token] of all.matchAll(TOKEN)) {
      if (token === "\n") this.newline();
      else if (token === "\r") this.column = 0;
      else if (token === "\b") this.column = Math.max(0, this.column - 1);
      else if (token.length > 1 && (token[0] === "\x1b" || token[0] === "\x9b")) this.obey(token);
      else if (token.length > 1 && token.charCodeAt(0) >= 0x90 && token.charCodeAt(0) < 0xa0) continue;
      else {
        const line = this.lines[this.row];
        line.stderr ||= stderr;
        this.column = line.write(this.column, this.style, visible(token));
      }
    }
  }

  /** Something between was never heard: what comes now follows the head, after a mark. */
  gap(count) {
    const kept = Math.min(this.head, this.lines.length);
    this.head = kept;
    this.omitted += count;
    this.drop(this.lines.length - kept);
    this.lines.push(new Line());
    this.row = this.lines.length - 1;
    this.column = 0;
    this.style = PLAIN;
    this.pending = "";
    this.beheaded = true;
  }

  /** The text of all lines, with a mark where some are left out. */
  text() {
    const all = this.lines.map((line) => line.text);
    if (this.omitted) all.splice(this.head, 0, omission(this.omitted).trim());
    return all.join("\n");
  }

  newline() {
    this.row += 1;
    this.column = 0;
    if (this.row === this.lines.length) this.lines.push(new Line());
    const over = this.lines.length - HEAD - TAIL;
    if (over > SLACK) this.drop(over);
  }

  // Drops the oldest lines of the tail.
  drop(count) {
    if (count <= 0) return;
    const gone = this.lines.splice(this.head, count);
    for (const line of gone) {
      this.omitted += line.length + line.cut + 1;
      this.removed.push(line);
    }
    if (this.row >= this.head) this.row = Math.max(this.head, this.row - count);
  }

  obey(sequence) {
    const found = CONTROL.exec(sequence);
    if (!found) return;
    const [, given, what] = found;
    const number = Math.max(1, Number.parseInt(given, 10) || 1);
    const line = this.lines[this.row];
    if (what === "m") this.style = styled(this.style, given);
    else if (what === "K") {
      const kind = Number.parseInt(given, 10) || 0;
      // To the beginning is with what is under the cursor, as to the end is.
      line.erase(kind === 0 ? this.column : 0, kind === 1 ? this.column + 1 : line.length);
    } else if (what === "A" || what === "F") this.move(-number, what === "F");
    else if (what === "B" || what === "E") this.move(number, what === "E");
    else if (what === "C") this.column = Math.min(this.column + number, LINE);
    else if (what === "D") this.column = Math.max(0, this.column - number);
    else if (what === "G") this.column = Math.min(number - 1, LINE);
  }

  move(rows, toBegin) {
    const top = this.omitted ? this.head : 0;
    this.row = Math.max(top, Math.min(this.row + rows, this.lines.length - 1));
    if (toBegin) this.column = 0;
  }
}

/** The style after an SGR sequence with these parameters; the same object when nothing changes. */
export function styled(before, given) {
  if (given === "" || given === "0") return PLAIN;
  const codes = given.split(/[;:]/).map((code) => Number.parseInt(code, 10) || 0);
  let style = { ...before };
  for (let at = 0; at < codes.length; at++) {
    const code = codes[at];
    if (code === 0) style = {};
    else if (code === 38 || code === 48) {
      const { colour, used } = extended(codes, at + 1);
      at += used;
      if (colour) style[code === 38 ? "fore" : "back"] = colour;
    } else apply(style, code);
  }
  return Object.keys(style).length ? Object.freeze(style) : PLAIN;
}

const ON = { 1: "bold", 2: "faint", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const OFF = { 22: ["bold", "faint"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"] };

function apply(style, code) {
  if (ON[code]) style[ON[code]] = true;
  else if (OFF[code]) for (const name of OFF[code]) delete style[name];
  else if (code === 39) delete style.fore;
  else if (code === 49) delete style.back;
  else if (code >= 30 && code <= 37) style.fore = SIXTEEN[code - 30];
  else if (code >= 40 && code <= 47) style.back = SIXTEEN[code - 40];
  else if (code >= 90 && code <= 97) style.fore = SIXTEEN[code - 82];
  else if (code >= 100 && code <= 107) style.back = SIXTEEN[code - 92];
}

// 5;N is one of 256, 2;R;G;B a colour of its own.
function extended(codes, at) {
  if (codes[at] === 5) return { colour: oneOf256(codes[at + 1]), used: 2 };
  if (codes[at] === 2) return { colour: rgb(codes[at + 1], codes[at + 2], codes[at + 3]), used: 4 };
  return { colour: null, used: 1 };
}

function rgb(...parts) {
  return parts.every((part) => part >= 0 && part <= 255) ? `rgb(${parts.join(", ")})` : null;
}

function oneOf256(number) {
  if (!(number >= 0 && number <= 255)) return null;
  if (number < 16) return SIXTEEN[number];
  if (number >= 232) return rgb(...Array(3).fill(8 + 10 * (number - 232)));
  const level = (part) => (part ? 55 + 40 * part : 0);
  const cube = number - 16;
  return rgb(level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6));
}
