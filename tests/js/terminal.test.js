// What a job printed, as a terminal would leave it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { HEAD, styled, TAIL, Terminal } from "../../arrea_nb/notebook/static/terminal.js";

function fed(...pieces) {
  const terminal = new Terminal();
  for (const piece of pieces) terminal.feed(piece);
  return terminal;
}

test("a carriage return goes over the line, and what it does not reach stays", () => {
  assert.equal(fed("100 of 200\r5").text(), "500 of 200");
  assert.equal(fed("10%\r20%\r", "100% done\nnext").text(), "100% done\nnext");
  assert.equal(fed("one\r\ntwo\r\n").text(), "one\ntwo\n");
  assert.equal(fed("long line\rshort\x1b[K").text(), "short");
  assert.equal(fed("abc\b\bX").text(), "aXc");
});

test("a line is erased to its end, to its beginning and the cursor, or whole", () => {
  assert.equal(fed("abcdef\x1b[3D\x1b[K").text(), "abc");
  assert.equal(fed("abcdef\x1b[3D\x1b[1K").text(), "    ef");
  assert.equal(fed("abcdef\x1b[1K!").text(), "      !");
  assert.equal(fed("abcdef\x1b[3D\x1b[2K!").text(), "   !");
});

test("what is written past a line's end has its own style, what lies between none", () => {
  const [line] = fed("\x1b[41mab\x1b[5Ccd\x1b[0m\x1b[2Cef").lines;
  assert.deepEqual(line.parts, [
    [{ back: "#cd3131" }, "ab"],
    [{}, "     "],
    [{ back: "#cd3131" }, "cd"],
    [{}, "  ef"],
  ]);
});

test("bars on several lines are redrawn where they are", () => {
  const terminal = fed("first 1%\nsecond 1%\n\x1b[2A\rfirst 9%\n\rsecond 9%\n");
  assert.equal(terminal.text(), "first 9%\nsecond 9%\n");
  assert.equal(fed("a\nb\x1b[99Ac").text(), "ac\nb");
});

test("colours: 16, 256, true, and their end", () => {
  const [[bold, word], [, rest]] = fed("\x1b[1;31mred\x1b[0m plain").lines[0].parts;
  assert.deepEqual([bold, word, rest], [{ bold: true, fore: "#cd3131" }, "red", " plain"]);
  assert.deepEqual(styled({}, "38;5;196"), { fore: "rgb(255, 0, 0)" });
  assert.deepEqual(styled({}, "48;5;250"), { back: "rgb(188, 188, 188)" });
  assert.deepEqual(styled({}, "38;2;1;2;3;4"), { fore: "rgb(1, 2, 3)", underline: true });
  assert.deepEqual(styled({ bold: true, fore: "#000000" }, "22;39"), {});
  assert.deepEqual(styled({}, "38;2;999;0;0"), {});
  assert.deepEqual(styled({}, "91"), { fore: "#f14c4c" });
});

test("a sequence that comes in two pieces is one", () => {
  assert.deepEqual(
    fed("a\x1b[3", "2mgreen").lines[0].parts.map(([, text]) => text),
    ["a", "green"],
  );
  assert.equal(fed("a\x1b]0;ti", "tle\x07b").text(), "ab");
});

test("other sequences leave no trace, and invisible characters are written out", () => {
  assert.equal(
    fed("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1b[?25l\u202e\x00").text(),
    "link \\u202e\\x00",
  );
  assert.equal(fed("<script>alert(1)</script>").text(), "<script>alert(1)</script>");
});

test("a flood keeps its beginning and its end, and counts what lies between", () => {
  const terminal = new Terminal();
  const printed = Array.from({ length: 20_000 }, (_, at) => `line ${at}\n`);
  for (const line of printed) terminal.feed(line);
  assert.ok(terminal.lines.length <= HEAD + TAIL + 201);
  assert.equal(terminal.lines[0].text, "line 0");
  assert.equal(terminal.lines.at(-2).text, "line 19999");
  const shown = terminal.lines.reduce((sum, line) => sum + line.length + 1, -1);
  assert.equal(shown + terminal.omitted, printed.join("").length);
  assert.match(terminal.text(), /left out/);
});

test("lines that are dropped are told, in their order, so that they leave the panel", () => {
  const terminal = new Terminal();
  const [first] = terminal.lines;
  const known = new Set(terminal.lines);
  const told = [];
  for (let at = 0; at < 3_000; at++) {
    terminal.feed(`line ${at}\n`);
    for (const line of terminal.lines) known.add(line);
    told.push(...terminal.removed.splice(0));
  }
  assert.ok(terminal.lines.includes(first));
  assert.equal(told.length, known.size - terminal.lines.length);
  assert.deepEqual(
    told.slice(0, 2).map((line) => line.text),
    [`line ${HEAD}`, `line ${HEAD + 1}`],
  );
  const tail = terminal.lines.slice(HEAD);
  terminal.gap(1000);
  assert.deepEqual(terminal.removed, tail);
});

test("what was never sent is a gap after the beginning, and what follows begins with a whole line", () => {
  const terminal = fed("first\n");
  terminal.gap(1000);
  terminal.feed("last\n");
  assert.equal(terminal.text(), "first\n\n… 1.0 kB left out …\nlast\n");
  terminal.gap(1000);
  terminal.feed("half a line\nlater");
  assert.equal(terminal.text(), "first\n\n… 2.0 kB left out …\nlater");
  assert.equal(terminal.omitted, 2000 + "last\n\n".length + "half a line\n".length);
});

test("what follows a gap has no style: nobody knows which it had", () => {
  const terminal = fed("\x1b[31mred\n");
  terminal.gap(1000);
  terminal.feed("cut off\nplain");
  assert.deepEqual(terminal.lines.at(-1).parts, [[{}, "plain"]]);
});

test("a line of ten megabytes is cut in its middle", () => {
  const terminal = new Terminal();
  for (let at = 0; at < 100; at++) terminal.feed("x".repeat(100_000));
  terminal.feed("end");
  const [line] = terminal.lines;
  assert.ok(line.length < 50_000);
  assert.match(line.text, /^x+ … 10 MB left out … x+end$/);
});

test("stderr is told from stdout, line by line", () => {
  const terminal = new Terminal();
  terminal.feed("out\n");
  terminal.feed("bad\n", true);
  assert.deepEqual(
    terminal.lines.map((line) => line.stderr),
    [false, true, false],
  );
});
