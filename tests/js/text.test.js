// Text as it is shown: inert, on one line, durations and amounts as a reader says them.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  amount,
  clock,
  inert,
  lasted,
  lastLine,
  oneLine,
  spoken,
} from "../../arrea_nb/notebook/static/text.js";

test("terminal sequences leave no trace, and what is invisible is written out", () => {
  assert.equal(inert("\x1b[31mred\x1b[0m \x1b]0;title\x07and\x1bPq#0\x1b\\ more"), "red and more");
  assert.equal(inert("a\u202eb\u2066c\x00d\u200be\x1b"), "a\\u202eb\\u2066c\\x00d\\u200be\\x1b");
  assert.equal(inert("kept:\n\t<b>é</b> שלום 👩‍💻"), "kept:\n\t<b>é</b> שלום 👩‍💻");
});

test("a sequence that never ends hides nothing after its line", () => {
  assert.equal(inert("\x1b]0;open\nsecond"), "\\x1b]0;open\nsecond");
});

test("a name is one line and not too long", () => {
  assert.equal(oneLine("  for i in 1 2\n do echo\n"), "for i in 1 2 do echo");
  assert.equal(oneLine("x".repeat(1000), 10), `${"x".repeat(9)}…`);
});

test("the last line is what a terminal would leave", () => {
  assert.equal(lastLine("one\ntwo\n\n"), "two");
  assert.equal(lastLine("10%\r20%\r30%"), "30%");
  assert.equal(lastLine("done\r\n"), "done");
  assert.equal(lastLine(" \n"), "");
});

test("durations and amounts", () => {
  const times = [0, 0.34, 9.96, 59.9, 60, 200, 3600, 7500];
  assert.deepEqual(
    times.map((one) => spoken(one)),
    ["0.0 s", "0.3 s", "10.0 s", "59 s", "1 min", "3 min 20 s", "1 h", "2 h 5 min"],
  );
  assert.equal(spoken(4.7, true), "4 s");
  assert.deepEqual([0.0004, 0.34, 0.9996, 3].map(lasted), ["0 ms", "340 ms", "1.0 s", "3.0 s"]);
  assert.deepEqual([0, 42, 61, 3723].map(clock), ["0:00", "0:42", "1:01", "1:02:03"]);
  assert.deepEqual([0, 999, 1234, 12_345, 412e6, 999.6e6, 5e12].map(amount), [
    "0 B",
    "999 B",
    "1.2 kB",
    "12 kB",
    "412 MB",
    "1.0 GB",
    "5.0 TB",
  ]);
});
