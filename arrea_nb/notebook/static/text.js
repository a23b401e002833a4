// Text that is safe and steady to show. Everything here is a pure function.
// Guarantees: what `inert` returns holds no terminal sequence and nothing invisible but newlines and tabs;
// characters that would turn the direction of text or hide in it are written out (\u202e).

const ESC = "\\x1b";
const NO_END = "[^\\x07\\x1b\\x9c\\n]{0,8192}";
const SEQUENCES = [
  `(?:${ESC}\\]|\\x9d)${NO_END}(?:\\x07|${ESC}\\\\|\\x9c)`, // OSC: titles, links, progress
  `(?:${ESC}[PX^_]|[\\x90\\x98\\x9e\\x9f])[^\\x1b\\x9c\\n]{0,8192}(?:${ESC}\\\\|\\x9c)`, // DCS and its kin
  `(?:${ESC}\\[|\\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]`, // CSI: colours, cursor
  `${ESC}[ -/]{0,8}[0-OQ-WYZ\\\\\`-~]`, // the short ones
];
/** The source of a pattern that matches one whole terminal sequence. */
export const SEQUENCE = SEQUENCES.join("|");
const ANY_SEQUENCE = new RegExp(SEQUENCE, "g");
const INVISIBLE =
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function writtenOut(found) {
  const code = found.charCodeAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

/** The text with invisible characters written out; terminal sequences are shown as text too. */
export function visible(text) {
  return text.replace(INVISIBLE, writtenOut);
}

/** The text without terminal sequences, in which nothing invisible is left; newlines and tabs stay. */
export function inert(text) {
  return visible(text.replace(ANY_SEQUENCE, ""));
}

/** A name on one line, inert, at most `most` characters. */
export function oneLine(text, most = 300) {
  const line = inert(
    text
      .slice(0, 8 * most)
      .replace(/\s+/g, " ")
      .trim(),
  );
  return line.length <= most ? line : `${line.slice(0, most - 1)}…`;
}

/** The last line of a text that says something, as a terminal would leave it: what was redrawn is gone. */
export function lastLine(text, most = 300) {
  const lines = text.slice(-4000).split("\n");
  for (let at = lines.length - 1; at >= 0; at--) {
    const line = lines[at].replace(/\r+$/, "");
    const left = inert(line.slice(line.lastIndexOf("\r") + 1)).trim();
    if (left) return left.slice(0, most);
  }
  return "";
}

/** Seconds as a reader says them: `1.2 s`, `12 s`, `3 min 20 s`, `2 h 5 min`; `whole` leaves tenths out. */
export function spoken(seconds, whole = false) {
  if (seconds < 60) return `${whole || seconds >= 10 ? Math.floor(seconds) : seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return joined(minutes, "min", Math.floor(seconds) % 60, "s");
  return joined(Math.floor(minutes / 60), "h", minutes % 60, "min");
}

/** What something took, once it is over: as spoken, and `340 ms` where that is less than a second. */
export function lasted(seconds) {
  return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : spoken(seconds);
}

function joined(large, itsUnit, small, smallUnit) {
  return small ? `${large} ${itsUnit} ${small} ${smallUnit}` : `${large} ${itsUnit}`;
}

/** Seconds as a clock shows them: `0:42`, `1:02:03`. */
export function clock(seconds) {
  const all = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(all / 3600);
  const minutes = Math.floor(all / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(all % 60)}` : `${minutes}:${two(all % 60)}`;
}

/** Bytes as a reader says them: `412 MB`, `1.2 GB`. */
export function amount(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  let [value, at] = [bytes / 1000, 0];
  while (value >= 999.5 && at < 3) [value, at] = [value / 1000, at + 1];
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${["kB", "MB", "GB", "TB"][at]}`;
}
