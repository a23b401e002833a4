// Making and changing elements, and the words and shapes that all parts of the view share.
// Guarantees: text goes in as text; nothing is touched that is already as wanted.

export const SHAPES = {
  queued: "○",
  running: "▶",
  waiting: "↻",
  succeeded: "✔",
  failed: "✖",
  timed_out: "◷",
  cancelled: "■",
  skipped: "▷",
};

export function element(tag, className, attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function attribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** The words of a state: `timed out`, not `timed_out`. */
export const worded = (state) => state.replace("_", " ");

/** A number as a reader reads it: `10,000`. */
export const counted = (number) => number.toLocaleString("en");
